"""messages.enable() treats every true value as True."""

from __future__ import annotations

import errno
import itertools
import socket

import pytest
from peers import SO_PASSPIDFD, SO_PASSRIGHTS, needs_passrights, needs_pidfd, outcome

from peercred import messages

OPTIONS = {"creds": socket.SO_PASSCRED, "pidfd": SO_PASSPIDFD, "label": socket.SO_PASSSEC, "fds": SO_PASSRIGHTS}


@needs_pidfd
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("value", [2, 3, 4, 8, "yes", [0]])
def test_what_is_true(datagrams, name, value):
    """A true value turns on its own option, and no other."""
    receiver, _ = datagrams
    messages.enable(receiver, **{**dict.fromkeys(OPTIONS, False), name: value})
    on = {other: outcome(receiver.getsockopt, socket.SOL_SOCKET, OPTIONS[other]) for other in OPTIONS}
    assert [other for other in OPTIONS if on[other] == 1] == [name] * (on[name] != (OSError, errno.ENOPROTOOPT))


@needs_pidfd
@needs_passrights
@pytest.mark.parametrize("values", [*itertools.product([False, True], repeat=4)], ids=str)
def test_every_combination(datagrams, values):
    """Exactly the options that were asked for are on."""
    receiver, _ = datagrams
    messages.enable(receiver, **dict(zip(OPTIONS, values, strict=True)))
    assert [receiver.getsockopt(socket.SOL_SOCKET, number) == 1 for number in OPTIONS.values()] == list(values)
