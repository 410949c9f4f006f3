"""Sockets that enable(), receive() and send() refuse."""

from __future__ import annotations

import errno
import socket
import ssl
import sys

import pytest

import peercred
from peercred import messages

FUNCTIONS = {
    "enable": messages.enable,
    "receive": lambda sock: messages.receive(sock, 100),
    "send": lambda sock: messages.send(sock, b"x"),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_other_families(function, kind):
    """TCP and UDP are refused, though some kernels take SO_PASSCRED there."""
    with socket.socket(socket.AF_INET, kind) as sock:
        with pytest.raises(peercred.NoPeerError, match="only Unix sockets") as caught:
            function(sock)
        assert caught.value.errno == errno.EAFNOSUPPORT


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_closed_socket(function, pair):
    """A closed socket is EBADF."""
    pair[0].close()
    with pytest.raises(OSError, match="must be a Unix socket") as caught:
        function(pair[0])
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("sock", [None, 3, True, "socket", sys.stdin])
def test_not_a_socket(function, sock):
    """What is no socket of the standard library is a TypeError.

    It names the remedy.
    """
    with pytest.raises(TypeError, match=r"not a plain socket\.socket: .*loop\.add_reader, trio.*anyio"):
        function(sock)


def test_tls_socket():
    """An SSLSocket, which has no messages, is refused with the remedy."""
    ours, theirs = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with theirs, context.wrap_socket(ours, do_handshake_on_connect=False) as sock:
        for function in (
            messages.enable,
            lambda sock: messages.receive(sock, 10),
            lambda sock: messages.send(sock, b"x"),
        ):
            with pytest.raises(TypeError, match=r"'SSLSocket' object is not a plain socket\.socket: "):
                function(sock)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_replaced_class(function, monkeypatch):
    """A class in the place of socket.socket that lacks its methods is refused.

    eventlet's does.
    """

    class GreenSocket:
        pass

    monkeypatch.setattr(socket, "socket", GreenSocket)
    with pytest.raises(TypeError, match="not a plain socket"):
        function(GreenSocket())
