"""Sockets of other families are refused, whatever the kernel says of them."""

from __future__ import annotations

import contextlib
import errno
import socket
from socket import AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_UNIX, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM

import pytest
from peers import assert_refused, needs_ipv6, needs_root, raw

import peercred

NOBODY = (0, 2**32 - 1, 2**32 - 1)


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
        assert_refused(sock, errno.EAFNOSUPPORT, f"only Unix sockets .* address family {family}$")
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
        assert_refused(sock, errno.EAFNOSUPPORT, f"only Unix sockets .* address family {family}$")


LOOPBACK = pytest.mark.parametrize(
    ("family", "host"), [(AF_INET, "127.0.0.1"), pytest.param(AF_INET6, "::1", marks=needs_ipv6)]
)


@LOOPBACK
def test_tcp_in_every_state(family, host):
    """TCP has no credentials listening, connected or accepted either."""
    with socket.create_server((host, 0), family=family) as listener:
        assert_refused(listener, errno.EAFNOSUPPORT, "only Unix sockets")
        with socket.create_connection(listener.getsockname()[:2]) as client:
            conn, _ = listener.accept()
            with conn:
                for sock in (client, conn):
                    assert_refused(sock, errno.EAFNOSUPPORT, "only Unix sockets")


@LOOPBACK
def test_connected_udp(family, host):
    """UDP, connected."""
    with socket.socket(family, SOCK_DGRAM) as sock:
        sock.connect((host, 9))
        assert_refused(sock, errno.EAFNOSUPPORT, "only Unix sockets")
