"""open_pidfd() and open_proc(): the descriptors that they open and close."""

from __future__ import annotations

import errno
import itertools
import os

import pytest
from peers import (
    Child,
    connect,
    exec_cat,
    free_descriptors,
    interrupted_by,
    needs_pidfd,
    open_descriptors,
    outcome,
)
from questions import OPENING, Peer, myself

import peercred
from peercred import Cred

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


def test_follows_the_process_through_exec(question, server):
    """The answer is the same process after an exec."""
    with Child(lambda: exec_cat(connect(server.getsockname()))) as child, server.accept()[0] as conn:
        conn.send(b"x")
        assert conn.recv(1) == b"x"  # it is cat by now
        with question.answered(conn) as answer:
            assert question.describes(answer, Peer(Cred(child.pid, 0, 0), ()))


def test_clients_own_end_has_the_listener(question, server):
    """A client's end has the process that called listen() last."""
    with Child(server.listen) as other:
        other.result()
        with connect(server.getsockname()) as client, question.answered(client) as answer:
            assert question.describes(answer, Peer(Cred(other.pid, 0, 0), ()))


def test_full_table(question, pair):
    """A full table is EMFILE, however far the call comes, and is as before."""
    for number in itertools.count():
        with free_descriptors(number):
            answer = outcome(question.function, pair[0])
            if isinstance(answer, int):
                question.drop(answer)
                break
            assert answer == (OSError, errno.EMFILE)
            for fd in [os.dup(0) for _ in range(number)]:  # there is still room for so many
                os.close(fd)
    assert number > 0


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
