"""Sockets without a peer, and things that are no sockets: each is refused, with its reason. The kernel says success."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import tempfile
from contextlib import ExitStack
from socket import AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_UNIX, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET, SOCK_STREAM

import pytest
from peers import LIBC, connect, needs_ipv6, needs_root

import peercred

NOBODY = (0, 2**32 - 1, 2**32 - 1)


def raw(sock):
    return struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


SISTERS = [peercred.read, peercred.read_groups, peercred.read_label, peercred.open_pidfd]


def refused(sock, number, words):
    """All four functions end in a NoPeerError, which is an OSError, with this errno and the same words."""
    said = set()
    for function in SISTERS:
        for conn in (sock, sock.fileno()):
            with pytest.raises(peercred.NoPeerError, match=words) as caught:
                function(conn)
            assert isinstance(caught.value, OSError)
            assert caught.value.errno == number
            said.add(str(caught.value))
    assert len(said) == 1


def unconnected(stack, kind):
    return stack.enter_context(socket.socket(AF_UNIX, kind))


def bound(stack, kind):
    sock = unconnected(stack, kind)
    sock.bind("")
    return sock


def failed(stack, kind):
    """Connecting was refused, for nobody listens there."""
    sock = unconnected(stack, kind)
    with pytest.raises(ConnectionRefusedError):
        sock.connect(bound(stack, kind).getsockname())
    return sock


def would_block(stack, kind):
    """Connecting did not wait, for the queue is full."""
    listener = bound(stack, kind)
    listener.listen(0)
    while True:
        sock = unconnected(stack, kind)
        sock.setblocking(False)
        try:
            sock.connect(listener.getsockname())
        except BlockingIOError:
            return sock


@pytest.mark.parametrize("make", [unconnected, bound, failed, would_block])
def test_unconnected(make, kind):
    """Every state before a connection is "not connected", where the kernel gives ids of -1 with success."""
    with ExitStack() as stack:
        sock = make(stack, kind)
        assert raw(sock) == NOBODY
        refused(sock, errno.ENOTCONN, "not connected: connect it, or pass what accept")


def test_listening(listener):
    """A listener is told to be one, where the kernel answers with the listener's own identity."""
    assert raw(listener) == (os.getpid(), os.geteuid(), os.getegid())
    refused(listener, errno.ENOTCONN, "listening socket: pass the accepted connection")


def test_listening_with_a_client(listener, kind):
    """A client in the queue, and an accepted one, do not make a listener answer."""
    with connect(listener.getsockname(), kind):
        refused(listener, errno.ENOTCONN, "listening socket")
        conn, _ = listener.accept()
        with conn:
            refused(listener, errno.ENOTCONN, "listening socket")


def test_datagram():
    """Datagram sockets know no peer, connected by address or not, and the message says where to look instead."""
    with ExitStack() as stack:
        receiver = bound(stack, SOCK_DGRAM)
        connected = unconnected(stack, SOCK_DGRAM)
        connected.connect(receiver.getsockname())
        for sock in (unconnected(stack, SOCK_DGRAM), receiver, connected):
            assert raw(sock) == NOBODY
            refused(sock, errno.ENOTCONN, "datagram socket without a fixed peer: .* each message")


def connected_elsewhere(stack, sock, other):
    sock.connect(bound(stack, SOCK_DGRAM).getsockname())


def disconnected(stack, sock, other):
    """connect(2) to AF_UNSPEC, which the standard library has no name for."""
    address = struct.pack("H", 0)
    assert LIBC.connect(sock.fileno(), address, len(address)) == 0


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
    """To the kernel it still has its maker's credentials, while messages come from others."""
    with ExitStack() as stack:
        sock, other = map(stack.enter_context, socket.socketpair(AF_UNIX, SOCK_DGRAM))
        assert peercred.read(sock).pid == os.getpid()
        change(stack, sock, other)
        assert raw(sock) == (os.getpid(), os.geteuid(), os.getegid())
        # SO_PEERSEC on datagram sockets is another error where a security module labels sockets.
        refused(sock, errno.ENOTCONN, "datagram socket without a fixed peer: .* each message")


@pytest.mark.parametrize("kind", [SOCK_STREAM, SOCK_SEQPACKET])
def test_bound_pair_of_another_type_has_a_peer(kind):
    """Only a datagram socket can be connected anew, so only there an address gives that away."""
    ours, theirs = socket.socketpair(AF_UNIX, kind)
    with ours, theirs:
        theirs.bind("")
        assert ours.getpeername() == theirs.getsockname()
        assert peercred.read(ours).pid == os.getpid()


def sockets_of_every_family():
    """A socket of each family and type that this kernel makes, other than Unix sockets."""
    for family in range(1, 46):
        for kind in range(1, 11):
            if family != AF_UNIX:
                with contextlib.suppress(OSError), socket.socket(family, kind) as sock:
                    yield sock


def test_every_family():
    """Whatever the kernel says of it, a socket of another family has no peer: Bluetooth says, its own maker."""
    everyone = peercred.AllowList(uids=range(2**32 - 1), gids=range(2**32 - 1))
    families = set()
    for sock in sockets_of_every_family():
        family = sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)  # SOCK_PACKET makes another one than asked for
        families.add(family)
        refused(sock, errno.EAFNOSUPPORT, f"only Unix sockets .* address family {family}$")
        with pytest.raises(peercred.NoPeerError):
            everyone.require(sock)
    assert families >= {AF_INET, AF_NETLINK}


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (AF_INET, SOCK_STREAM),
        pytest.param(AF_INET6, SOCK_STREAM, marks=needs_ipv6),
        (AF_INET, SOCK_DGRAM),
        pytest.param(AF_INET6, SOCK_DGRAM, marks=needs_ipv6),
        (AF_NETLINK, SOCK_RAW),
        pytest.param(AF_PACKET, SOCK_RAW, marks=needs_root),
    ],
)
def test_other_families(family, kind):
    """No other family has peer credentials."""
    with socket.socket(family, kind) as sock:
        assert raw(sock) == NOBODY
        refused(sock, errno.EAFNOSUPPORT, f"only Unix sockets .* address family {family}$")


LOOPBACK = pytest.mark.parametrize(
    ("family", "host"), [(AF_INET, "127.0.0.1"), pytest.param(AF_INET6, "::1", marks=needs_ipv6)]
)


@LOOPBACK
def test_tcp_in_every_state(family, host):
    """TCP has no credentials listening, connected or accepted either."""
    with socket.create_server((host, 0), family=family) as listener:
        refused(listener, errno.EAFNOSUPPORT, "only Unix sockets")
        with socket.create_connection(listener.getsockname()[:2]) as client:
            conn, _ = listener.accept()
            with conn:
                for sock in (client, conn):
                    refused(sock, errno.EAFNOSUPPORT, "only Unix sockets")


@LOOPBACK
def test_connected_udp(family, host):
    """UDP, connected."""
    with socket.socket(family, SOCK_DGRAM) as sock:
        sock.connect((host, 9))
        refused(sock, errno.EAFNOSUPPORT, "only Unix sockets")


def pipe(stack):
    fds = os.pipe()
    for fd in fds:
        stack.callback(os.close, fd)
    return fds[0]


def event(stack):
    import ctypes  # os.eventfd comes with Python 3.10 only where libc had it

    fd = ctypes.CDLL(None).eventfd(0, 0)
    stack.callback(os.close, fd)
    return fd


def regular_file(stack):
    return stack.enter_context(tempfile.TemporaryFile())


def epoll(stack):
    return stack.enter_context(select.epoll())


@pytest.mark.parametrize("function", SISTERS)
@pytest.mark.parametrize("make", [pipe, event, regular_file, epoll])
def test_not_a_socket(function, make):
    """The kernel's ENOTSOCK, as an OSError that says what it should be."""
    with ExitStack() as stack, pytest.raises(OSError, match="should be a Unix socket") as caught:
        function(make(stack))
    assert (type(caught.value), caught.value.errno) == (OSError, errno.ENOTSOCK)


def closed_descriptor(stack):
    with socket.socket() as sock:
        return sock.fileno()


def closed_socket(stack):
    with socket.socket() as sock:
        return sock


def path_descriptor(stack):
    if not hasattr(os, "O_PATH"):
        pytest.skip("needs os.O_PATH, which PyPy lacks")
    fd = os.open("/dev/null", os.O_PATH)
    stack.callback(os.close, fd)
    return fd


@pytest.mark.parametrize("function", SISTERS)
@pytest.mark.parametrize("make", [closed_descriptor, closed_socket, path_descriptor, lambda stack: -1])
def test_not_open(function, make):
    """The kernel's EBADF, of closed sockets and descriptors, O_PATH, and -1."""
    with ExitStack() as stack, pytest.raises(OSError, match="should be a Unix socket") as caught:
        function(make(stack))
    assert (type(caught.value), caught.value.errno) == (OSError, errno.EBADF)


def test_seqpacket_and_stream_pairs_have_a_peer():
    """The counter-test: what these tests refuse is not everything."""
    for kind in (SOCK_STREAM, SOCK_SEQPACKET):
        with ExitStack() as stack:
            sock, _ = map(stack.enter_context, socket.socketpair(AF_UNIX, kind))
            assert peercred.read(sock).uid == os.geteuid()
