"""receive(): the address that the sender's socket is bound to."""

from __future__ import annotations

import ctypes
import os
import socket
import struct

import pytest
from peers import LIBC

from peercred import messages


def bind(sock, name):
    """bind(2) to bytes that need not end in a NUL."""
    address = struct.pack("H", socket.AF_UNIX) + name
    if LIBC.bind(sock.fileno(), address, len(address)) != 0:
        raise OSError(ctypes.get_errno(), "bind")


@pytest.fixture
def ends():
    """A receiver of datagrams, and a sender that is connected to it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(receiver.getsockname())
            yield receiver, sender


def received(ends):
    receiver, sender = ends
    sender.send(b"x")
    return messages.receive(receiver, 1).address


def test_unbound(ends):
    """A socket without an address has none."""
    assert received(ends) is None


@pytest.mark.parametrize("name", ["s", "s\udcff", "é"])
def test_path(ends, place, name):
    """A path is a str, as os.fsdecode() makes it."""
    path = f"{place}/{name}"
    ends[1].bind(os.fsencode(path))
    assert received(ends) == path == ends[1].getsockname()


@pytest.mark.parametrize("length", [107, 108])
def test_longest_path(ends, place, length):
    """A path that fills the address is shown to its end, and no further.

    One of 108 bytes has no NUL at its end.
    """
    path = f"{place}/{'p' * length}"[:length]
    bind(ends[1], path.encode())
    try:
        for _ in range(5):
            assert received(ends) == path
    finally:
        os.unlink(path)


def test_path_and_more(ends, place):
    """What stands behind the NUL of a path is not part of it."""
    path = f"{place}/s"
    bind(ends[1], path.encode() + b"\0more")
    assert received(ends) == path


@pytest.mark.parametrize("name", [b"\0", b"\0name", b"\0a\0b\0", b"\0" + b"n" * 91])
def test_abstract(ends, name):
    """An abstract address is bytes, with every NUL, and at most 108."""
    bind(ends[1], name + os.urandom(8).hex().encode())  # containers may share these names, and have equal pids
    assert received(ends) == ends[1].getsockname()
    assert received(ends).startswith(name)


def test_answer_in_kind(ends):
    """send(address=...) takes it, so a datagram can be answered."""
    receiver, sender = ends
    sender.bind("")
    messages.send(receiver, b"answer", address=received(ends))
    assert sender.recv(10) == b"answer"
