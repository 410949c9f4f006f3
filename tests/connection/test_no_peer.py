"""Unix sockets without a peer are refused, with the reason.

The kernel calls each of them a success.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from socket import AF_UNIX, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM

import pytest
from peers import NOBODY, connect, disconnect, fill_backlog, raw
from questions import assert_refused

import peercred


def unconnected(stack, kind):
    return stack.enter_context(socket.socket(AF_UNIX, kind))


def bound(stack, kind):
    sock = unconnected(stack, kind)
    sock.bind("")
    return sock


def failed(stack, kind):
    """Connecting was refused, because nobody listens there."""
    sock = unconnected(stack, kind)
    with pytest.raises(ConnectionRefusedError):
        sock.connect(bound(stack, kind).getsockname())
    return sock


def would_block(stack, kind):
    """Connecting did not wait, though the queue is full."""
    listener = bound(stack, kind)
    listener.listen(0)
    return fill_backlog(listener, stack)


def test_every_type():
    """A Unix socket of any type is refused until it is connected."""
    types = set()
    for kind in range(1, 11):
        try:
            sock = socket.socket(AF_UNIX, kind)
        except OSError:
            continue
        with sock:
            types.add(sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE))
            assert_refused(sock, errno.ENOTCONN, "not connected|without a fixed peer")
    assert types == {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}


@pytest.mark.parametrize("make", [unconnected, bound, failed, would_block])
def test_unconnected(make, kind):
    """A socket in any state before a connection is "not connected".

    The kernel gives ids of -1 with success.
    """
    with ExitStack() as stack:
        sock = make(stack, kind)
        assert raw(sock) == NOBODY
        assert_refused(sock, errno.ENOTCONN, "not connected: connect it, or pass what accept")


def test_listening(listener):
    """A listening socket is told to be one.

    The kernel answers with the listener's own identity.
    """
    assert raw(listener) == (os.getpid(), os.geteuid(), os.getegid())
    assert_refused(listener, errno.ENOTCONN, "listening socket: pass the connection that accept")


def test_listening_with_a_client(listener, kind):
    """A listener is refused, whether clients wait or are accepted."""
    with connect(listener.getsockname(), kind):
        assert_refused(listener, errno.ENOTCONN, "listening socket")
        conn, _ = listener.accept()
        with conn:
            assert_refused(listener, errno.ENOTCONN, "listening socket")


def test_datagram():
    """A datagram socket is refused, and told where to look instead."""
    with ExitStack() as stack:
        receiver = bound(stack, SOCK_DGRAM)
        connected = unconnected(stack, SOCK_DGRAM)
        connected.connect(receiver.getsockname())
        for sock in (unconnected(stack, SOCK_DGRAM), receiver, connected):
            assert raw(sock) == NOBODY
            assert_refused(sock, errno.ENOTCONN, "datagram socket without a fixed peer: .* each message")


def connected_elsewhere(stack, sock, other):
    sock.connect(bound(stack, SOCK_DGRAM).getsockname())


def disconnected(stack, sock, other):
    disconnect(sock)


def other_end_gone(stack, sock, other):
    other.close()
    with pytest.raises(ConnectionRefusedError):
        sock.send(b"x")


def other_end_bound(stack, sock, other):
    other.bind("")


def other_end_bound_by_itself(stack, sock, other):
    """SO_PASSCRED binds a socket that sends."""
    other.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    other.send(b"x")


@pytest.mark.parametrize(
    "change", [connected_elsewhere, disconnected, other_end_gone, other_end_bound, other_end_bound_by_itself]
)
def test_datagram_pair_that_was_changed(change):
    """A datagram pair that was changed is refused.

    To the kernel it still has its maker's credentials, while messages come from
    others.
    """
    with ExitStack() as stack:
        sock, other = map(stack.enter_context, socket.socketpair(AF_UNIX, SOCK_DGRAM))
        assert peercred.read(sock).pid == os.getpid()
        change(stack, sock, other)
        assert raw(sock) == (os.getpid(), os.geteuid(), os.getegid())
        # SO_PEERSEC on datagram sockets is another error where a security
        # module labels sockets.
        assert_refused(sock, errno.ENOTCONN, "datagram socket without a fixed peer: .* each message")


@pytest.mark.parametrize("kind", [SOCK_STREAM, SOCK_SEQPACKET])
def test_bound_pair_of_another_type_has_a_peer(kind):
    """A stream or seqpacket pair still has a peer after bind().

    Only a datagram socket can be connected anew.
    """
    ours, theirs = socket.socketpair(AF_UNIX, kind)
    with ours, theirs:
        theirs.bind("")
        assert ours.getpeername() == theirs.getsockname()
        assert peercred.read(ours).pid == os.getpid()


def test_seqpacket_and_stream_pairs_have_a_peer():
    """The counter-test: connected stream and seqpacket sockets have a peer."""
    for kind in (SOCK_STREAM, SOCK_SEQPACKET):
        with ExitStack() as stack:
            sock, _ = map(stack.enter_context, socket.socketpair(AF_UNIX, kind))
            assert peercred.read(sock).uid == os.geteuid()
