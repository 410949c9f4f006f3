"""receive(bufsize, flags): how much of a message is read, or none."""

from __future__ import annotations

import socket

import pytest
from peers import Child, own

from peercred import messages


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
@pytest.mark.parametrize("bufsize", [0, 100])
def test_empty_message_is_real(kind, bufsize):
    """An empty datagram or seqpacket message has a sender."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, kind)
    with receiver, sender:
        messages.enable(receiver)
        with Child(lambda: sender.send(b"")) as child:
            child.result()
            message = messages.receive(receiver, bufsize)
        assert (message.data, message.cred.pid) == (b"", child.pid)


def test_no_buffer(ends):
    """Without a buffer, the data of a stream stays; that is not its end."""
    receiver, sender = ends
    messages.enable(receiver)
    sender.send(b"x")
    message = messages.receive(receiver, 0)
    assert (message.data, message.cred) == (b"", own())
    if receiver.type == socket.SOCK_STREAM:
        assert messages.receive(receiver, 1).data == b"x"


def test_truncated_data(datagrams):
    """A datagram that is cut off sets MSG_TRUNC, and its sender is whole."""
    receiver, sender = datagrams
    sender.send(b"abcdef")
    message = messages.receive(receiver, 3)
    assert (message.data, message.cred, message.flags) == (b"abc", own(), socket.MSG_TRUNC)


def test_real_length_of_what_is_cut_off(ends):
    """MSG_TRUNC gives no more data than the buffer holds.

    The kernel returns the whole length of a datagram then.
    """
    receiver, sender = ends
    sender.send(b"x" * 5000)
    message = messages.receive(receiver, 10, socket.MSG_TRUNC | socket.MSG_PEEK)
    assert len(message.data) <= 10
    if receiver.type != socket.SOCK_STREAM:
        assert message.flags & socket.MSG_TRUNC
        assert message.data == b"x" * 10


@pytest.mark.parametrize("bufsize", [-1, -(2**64), 2**62])
def test_sizes_that_cannot_be(datagrams, bufsize):
    """A size that no buffer can have is refused, and no message lost."""
    receiver, sender = datagrams
    sender.send(b"x")
    with pytest.raises((ValueError, MemoryError)):
        messages.receive(receiver, bufsize)
    assert messages.receive(receiver, 10).data == b"x"


@pytest.mark.parametrize("bufsize", ["1", b"1", 1.0, None, [1]])
def test_sizes_that_are_no_numbers(datagrams, bufsize):
    """A size must be an integer."""
    with pytest.raises(TypeError):
        messages.receive(datagrams[0], bufsize, socket.MSG_DONTWAIT)


@pytest.mark.parametrize(("bufsize", "flags"), [(2**64, 0), (10, 2**31), (10, 2**64)])
def test_what_recvmsg_cannot_take(datagrams, bufsize, flags):
    """A size or flags that C cannot hold are refused, and no message lost."""
    receiver, sender = datagrams
    sender.send(b"x")
    with pytest.raises(ValueError, match=r"^(bufsize must be from 0 to|flags must fit a C int)"):
        messages.receive(receiver, bufsize, flags)
    assert messages.receive(receiver, 10).data == b"x"
