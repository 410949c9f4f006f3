"""receive(): who sent this message.

The oracles are /proc and the senders themselves.
"""

from __future__ import annotations

import errno
import os
import socket

import pytest
from peers import SO_TIMESTAMP, Child, become, call, connect, needs_root

import peercred
from peercred import Cred, messages


def test_sender_is_named(ends):
    """A message has the pid and real ids of the process that wrote it."""
    receiver, sender = ends
    messages.enable(receiver)
    with Child(lambda: sender.send(b"hello")) as child:
        message = messages.receive(receiver, 100)
        assert message == messages.Message(
            data=b"hello", cred=Cred(child.pid, os.getuid(), os.getgid()), label=None, flags=0, address=None
        )
        assert message.pidfd is None
        assert message.pidfd_error is None


@needs_root
def test_real_ids(ends):
    """Of real, effective and saved ids, a message has the real ones."""
    receiver, sender = ends
    messages.enable(receiver)

    def send():
        become(uid=(1001, 1002, 1003), gid=(2001, 2002, 2003))
        sender.send(b"x")

    with Child(send) as child:
        cred = messages.receive(receiver, 100).cred
        child.result()
        assert cred == Cred(child.pid, child.status("Uid")[0], child.status("Gid")[0]) == Cred(child.pid, 1001, 2001)


@needs_root
def test_large_ids(datagrams):
    """A sender's ids above 2^31 are unsigned."""
    receiver, sender = datagrams
    call(lambda: become(uid=4294967294, gid=3000000000) or sender.send(b"x"))
    cred = messages.receive(receiver, 100).cred
    assert (cred.uid, cred.gid) == (4294967294, 3000000000)


def test_writer_that_inherited_the_connection(server):
    """A message names who writes it, not who connected."""
    messages.enable(server)
    with connect(server.getsockname()) as client, server.accept()[0] as conn:
        with Child(lambda: client.send(b"x")) as child:
            assert messages.receive(conn, 100).cred.pid == child.pid
        assert peercred.read(conn).pid == os.getpid()


def test_two_writers_of_one_stream(pair):
    """One read of a stream ends where the sender changes."""
    receiver, sender = pair
    messages.enable(receiver)
    pids = []
    for data in (b"one", b"two"):
        with Child(lambda data=data: sender.send(data)) as child:
            child.result()
            pids.append(child.pid)
    sender.send(b"three")
    got = [messages.receive(receiver, 100, socket.MSG_WAITALL if n < 2 else 0) for n in range(3)]
    assert [(message.data, message.cred.pid) for message in got] == [
        (b"one", pids[0]),
        (b"two", pids[1]),
        (b"three", os.getpid()),
    ]


def test_credentials_without_room(datagrams):
    """Credentials that SO_TIMESTAMP squeezes out are an error.

    The message must not pass for one of nobody.
    """
    receiver, sender = datagrams
    receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
    sender.send(b"x")
    with pytest.raises(OSError, match="SO_TIMESTAMP") as caught:
        messages.receive(receiver, 100)
    assert caught.value.errno == errno.EMSGSIZE
