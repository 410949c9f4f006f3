"""enable(fds=False): descriptors are refused at their sender."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest
from peers import attach, call, fdinfo, needs_passrights, outcome
from raw import assert_nothing_arrives

from peercred import messages


@needs_passrights
def test_refused_at_the_sender(ends):
    """Who attaches descriptors gets EPERM.

    Plain messages and pidfds still arrive.
    """
    receiver, sender = ends
    messages.enable(receiver, pidfd=True, fds=False)
    with pytest.raises(PermissionError):
        attach(sender, b"x", 1)
    with pytest.raises(PermissionError, match=r"with the descriptors \(0,\), which the receiver may refuse"):
        messages.send(sender, b"x", fds=[0])
    messages.send(sender, b"y")
    with messages.receive(receiver, 100, max_fds=1) as message:
        assert (message.data, fdinfo(message.pidfd), message.fds) == (b"y", os.getpid(), ())
    messages.enable(receiver)
    attach(sender, b"x", 1)
    assert messages.receive(receiver, 100).flags == socket.MSG_CTRUNC


@needs_passrights
def test_accepted_connections_refuse_too(server):
    """Connections refuse what their listener refused before listen()."""
    messages.enable(server, fds=False)
    server.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(server.getsockname())
        with server.accept()[0], pytest.raises(PermissionError):
            attach(client, b"x", 1)


@needs_passrights
def test_lingering_descriptor(ends):
    """A TCP socket that would take an hour to close never gets in."""
    receiver, sender = ends
    messages.enable(receiver, fds=False)

    def hostile():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            tcp = socket.create_connection(listener.getsockname())
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
            tcp.setblocking(False)
            while isinstance(outcome(tcp.send, bytes(65536)), int):
                pass
            error = outcome(socket.send_fds, sender, [b"x"], [tcp.fileno()])
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            tcp.close()
            return error

    assert call(hostile) == (PermissionError, errno.EPERM)
    assert_nothing_arrives(receiver)
