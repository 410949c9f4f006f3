"""enable(): which options are on afterwards, as the kernel says."""

from __future__ import annotations

import errno
import itertools
import socket

import pytest
from peers import SO_PASSPIDFD, SO_PASSRIGHTS, connect, enabled, needs_passrights, needs_pidfd, outcome, own

from peercred import messages


def test_options_of_a_listener_are_inherited(server):
    """Connections have what their listener enabled before listen()."""
    messages.enable(server)
    server.listen()
    with connect(server.getsockname()) as client, server.accept()[0] as conn:
        client.send(b"x")
        assert enabled(conn) == {"creds"}
        assert messages.receive(conn, 100).cred == own()


def test_enable_is_as_given(ends):
    """enable() turns each option on or off, as given."""
    receiver, _ = ends
    messages.enable(receiver)
    assert enabled(receiver) == {"creds"}
    messages.enable(receiver, label=True)
    assert enabled(receiver) == {"creds", "label"}
    messages.enable(receiver, creds=False)
    assert enabled(receiver) == set()


@needs_pidfd
def test_enable_pidfd(ends):
    """enable() turns SO_PASSPIDFD on or off, as given."""
    receiver, _ = ends
    messages.enable(receiver, creds=False, pidfd=True, label=True)
    assert enabled(receiver) == {"pidfd", "label"}
    messages.enable(receiver, pidfd=False)
    assert enabled(receiver) == {"creds"}


OPTIONS = {"creds": socket.SO_PASSCRED, "pidfd": SO_PASSPIDFD, "label": socket.SO_PASSSEC, "fds": SO_PASSRIGHTS}


@needs_pidfd
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("value", [2, 3, 4, 8, "yes", [0]])
def test_what_is_true(datagrams, name, value):
    """A true value, as True does, turns on its own option, and no other."""
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
