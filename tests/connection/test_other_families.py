"""Sockets of other families are refused, whatever the kernel says of them."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from socket import AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_UNIX, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM, AddressFamily

import pytest
from peers import NOBODY, needs_ipv6, needs_root, raw, sockets_of_every_family
from questions import assert_refused

import peercred
from peercred import messages

# The error names those that this Python has names for.
NAMED = {family.value: family.name for family in AddressFamily}


def words(family):
    """What the error says about a socket of this family."""
    return f"^.*only Unix sockets have peer credentials, .* is {NAMED.get(family, f'address family {int(family)}')}$"


def test_every_family():
    """Each function refuses a socket of any other family, whatever the kernel
    says.

    Of a Bluetooth socket, for example, it says that its own maker is the peer.
    """
    everyone = peercred.AllowList(uids=range(2**32 - 1), gids=range(2**32 - 1))
    families = Counter()
    for sock in sockets_of_every_family():
        family = sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)  # SOCK_PACKET makes another one than asked for
        families[family] += 1
        assert_refused(sock, errno.EAFNOSUPPORT, words(family))
        for function in (everyone.require, messages.enable):
            with pytest.raises(peercred.NoPeerError) as caught:
                function(sock)
            assert caught.value.errno == errno.EAFNOSUPPORT
    assert families[AF_INET] > 1
    assert families[AF_NETLINK] > 1
    assert AF_UNIX not in families


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
    """No socket of another family has peer credentials."""
    with socket.socket(family, kind) as sock:
        assert raw(sock) == NOBODY
        assert_refused(sock, errno.EAFNOSUPPORT, words(family))


LOOPBACK = pytest.mark.parametrize(
    ("family", "host"), [(AF_INET, "127.0.0.1"), pytest.param(AF_INET6, "::1", marks=needs_ipv6)]
)


@LOOPBACK
def test_tcp_in_every_state(family, host):
    """TCP sockets are refused: listening, connected and accepted."""
    with socket.create_server((host, 0), family=family) as listener:
        assert_refused(listener, errno.EAFNOSUPPORT, "only Unix sockets")
        with socket.create_connection(listener.getsockname()[:2]) as client:
            conn, _ = listener.accept()
            with conn:
                for sock in (client, conn):
                    assert_refused(sock, errno.EAFNOSUPPORT, "only Unix sockets")


@LOOPBACK
def test_connected_udp(family, host):
    """Connected UDP sockets are refused."""
    with socket.socket(family, SOCK_DGRAM) as sock:
        sock.connect((host, 9))
        assert_refused(sock, errno.EAFNOSUPPORT, "only Unix sockets")
