"""receive(): descriptors that nobody asked for are dropped or closed.

conftest.py checks that each test leaves none open.
"""

from __future__ import annotations

import errno
import os
import socket

import pytest
from peers import attach, call, fdinfo, fill_table, needs_pidfd, needs_pidfd_open, open_descriptors, own

from peercred import messages


@pytest.mark.parametrize("creds", [True, False])
@pytest.mark.parametrize("number", [1, 253])
@pytest.mark.parametrize("flags", [0, socket.MSG_PEEK])
def test_uninvited(ends, creds, number, flags):
    """Descriptors that nobody asked for are lost, which MSG_CTRUNC says.

    The table is full here, and that is no obstacle.
    """
    receiver, sender = ends
    messages.enable(receiver, creds=creds)
    attach(sender, b"x", number)

    def full():
        fill_table()
        message = messages.receive(receiver, 100, flags)
        return message.data, message.cred and message.cred.uid, message.flags, message.fds

    assert call(full) == (b"x", os.getuid() if creds else None, socket.MSG_CTRUNC, ())


@needs_pidfd
@pytest.mark.parametrize("creds", [True, False])
@pytest.mark.parametrize("number", [1, 253])
@pytest.mark.parametrize("flags", [0, socket.MSG_PEEK])
def test_uninvited_beside_a_pidfd(ends, number, creds, flags):
    """Uninvited descriptors are closed, and none is passed off as a pidfd.

    They may take its room, which `pidfd_error` says.
    """
    receiver, sender = ends
    messages.enable(receiver, creds=creds, pidfd=True)
    attach(sender, b"x", number)
    before = open_descriptors()
    with messages.receive(receiver, 100, flags) as message:
        assert (message.data, message.cred, message.fds) == (b"x", own() if creds else None, ())
        if message.pidfd is None:
            assert message.pidfd_error.errno == errno.EMSGSIZE
        else:
            assert fdinfo(message.pidfd) == os.getpid()
        assert len(open_descriptors().keys() - before.keys()) == (message.pidfd is not None)
        assert message.flags & socket.MSG_CTRUNC


@needs_pidfd
@needs_pidfd_open
def test_planted_pidfd(datagrams):
    """A pidfd that a sender attaches is not taken for the sender's own."""
    receiver, sender = datagrams
    messages.enable(receiver, pidfd=True)
    pidfd = os.pidfd_open(1)
    socket.send_fds(sender, [b"x"], [pidfd])
    os.close(pidfd)
    with messages.receive(receiver, 100) as message:
        assert message.pidfd is None or fdinfo(message.pidfd) == os.getpid()


@needs_pidfd
@pytest.mark.parametrize("number", [1, 253])
def test_uninvited_beside_a_label(datagrams, number):
    """Descriptors that fit into a label's room are closed.

    The pidfd is there, and MSG_CTRUNC too.
    """
    receiver, sender = datagrams
    messages.enable(receiver, pidfd=True, label=True)
    attach(sender, b"x", number)
    before = open_descriptors()
    with messages.receive(receiver, 100) as message:
        assert (message.cred, fdinfo(message.pidfd), message.fds) == (own(), os.getpid(), ())
        assert message.flags == socket.MSG_CTRUNC
        assert len(open_descriptors().keys() - before.keys()) == 1
