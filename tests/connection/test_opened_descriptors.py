"""open_pidfd() and open_proc(): the descriptors that they open and close."""

from __future__ import annotations

import os

import pytest
from peers import interrupted_by, needs_pidfd, open_descriptors
from questions import OPENING, myself

import peercred

pytestmark = [needs_pidfd, pytest.mark.parametrize("question", OPENING, ids=str)]


def test_is_close_on_exec_and_new_each_time(question, pair):
    """Every call makes one new descriptor, which is close-on-exec."""
    before = open_descriptors().keys()
    opened = [question.function(pair[0]) for _ in range(2)]
    assert open_descriptors().keys() - before == set(map(str, opened))
    assert not any(map(os.get_inheritable, opened))
    assert os.path.samestat(*map(os.fstat, opened))
    for fd in opened:
        os.close(fd)


def test_listening_socket_leaks_nothing(question, server):
    """The pidfd that the kernel makes of a listener is closed again."""
    before = open_descriptors()
    for _ in range(100):
        with pytest.raises(peercred.NoPeerError, match="listening"):
            question.function(server)
    assert open_descriptors() == before


def test_signals_neither_lose_nor_leak(question, pair):
    """Handlers that run in the middle of calls do not disturb them."""
    handled = []
    with interrupted_by(lambda *_: handled.append(question.ask(pair[1])), 0.0005, 0.0005):
        while len(handled) < 100:
            question.assert_about(pair[0], myself())
