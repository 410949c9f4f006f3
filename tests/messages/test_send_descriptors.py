"""send(fds=...): which descriptors can be sent, and which are refused."""

from __future__ import annotations

import array
import errno
import itertools
import os
import socket

import pytest
from raw import assert_nothing_arrives

from peercred import Cred, messages


def test_sent(ends):
    """Ints and objects with fileno() arrive beside credentials.

    The standard library receives them.
    """
    receiver, sender = ends
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with open(__file__) as file:
        assert messages.send(sender, b"hello", cred=Cred(None, os.getuid(), os.getgid()), fds=(file, 0)) == 5
    data, [_, (level, kind, payload)], flags, _ = receiver.recvmsg(100, 100)
    assert (data, level, kind, flags) == (b"hello", socket.SOL_SOCKET, socket.SCM_RIGHTS, 0)
    fds = array.array("i", payload)
    assert [
        os.path.samestat(os.fstat(fd), other) for fd, other in zip(fds, (os.stat(__file__), os.fstat(0)), strict=True)
    ] == [
        True,
        True,
    ]
    for fd in fds:
        os.close(fd)


def test_as_many_as_there_can_be(ends):
    """253 descriptors arrive, and one more is an error."""
    receiver, sender = ends
    messages.send(sender, b"x", fds=[0] * 253)
    with messages.receive(receiver, 100, max_fds=253) as message:
        assert len(message.fds) == 253
    with pytest.raises(ValueError, match="at most 253 fds can be sent"):
        messages.send(sender, b"x", fds=[0] * 254)
    assert_nothing_arrives(receiver)


@pytest.mark.parametrize(
    "fds", ["ab", b"ab", bytearray(b"ab"), memoryview(b"ab"), 5, None, [None], [True], ["5"], [5.0], [object]]
)
def test_what_is_no_descriptor(pair, fds):
    """What is no descriptor is a TypeError, and nothing is sent."""
    receiver, sender = pair
    with pytest.raises(TypeError):
        messages.send(sender, b"x", fds=fds)
    assert_nothing_arrives(receiver)


@pytest.mark.parametrize("number", [-1, -(2**31), 2**31, 2**64])
def test_what_no_descriptor_can_be(pair, number):
    """A number that no descriptor has is a ValueError."""
    with pytest.raises(ValueError, match=f"none has the number {number}"):
        messages.send(pair[1], b"x", fds=[0, number])


def test_what_is_not_open(ends):
    """A descriptor that is not open is EBADF, and nothing is sent."""
    receiver, sender = ends
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises(OSError, match=rf"sending with the descriptors \(0, {fd}\)$") as caught:
        messages.send(sender, b"x", fds=[0, fd])
    assert caught.value.errno == errno.EBADF
    assert_nothing_arrives(receiver)


@pytest.mark.parametrize("data", [b"", [], [b"", b""]])
def test_nothing_to_carry_them(pair, data):
    """Descriptors without data are an error on a stream."""
    with pytest.raises(ValueError, match="no data"):
        messages.send(pair[1], data, fds=[0])


def test_endless_descriptors(ends):
    """An iterable that never ends is refused as one that is too long."""
    receiver, sender = ends
    with pytest.raises(ValueError, match="at most 253 fds can be sent"):
        messages.send(sender, b"x", fds=itertools.repeat(0))
    assert_nothing_arrives(receiver)


def test_endless_data(ends):
    """Too many pieces of data are refused, even without end."""
    receiver, sender = ends
    with pytest.raises(OSError, match="Message too long") as caught:
        messages.send(sender, itertools.repeat(b"x"))
    assert caught.value.errno == errno.EMSGSIZE
    assert_nothing_arrives(receiver)


def contents(receiver, number):
    """What is in the files that arrive."""
    fds = socket.recv_fds(receiver, 10, number)[1]
    try:
        return [os.pread(fd, 10, 0) for fd in fds]
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the files are dropped, not closed
@pytest.mark.parametrize("kind", [map, lambda function, names: (function(name) for name in names)])
def test_files_that_nobody_else_holds(pair, tmp_path, kind):
    """The files that an iterator opens stay open until they are sent."""
    receiver, sender = pair
    for name in "abc":
        (tmp_path / name).write_text(name)
    messages.send(sender, b"x", fds=kind(open, [tmp_path / name for name in "abc"]))
    assert contents(receiver, 9) == [b"a", b"b", b"c"]


def test_number_that_is_closed_when_it_is_dropped(pair, tmp_path):
    """An object with fileno() is held, too, whatever it closes at its end."""

    class Temporary:
        def __init__(self, content):
            self.fd = os.memfd_create("temporary")
            os.write(self.fd, content)

        def fileno(self):
            return self.fd

        def __del__(self):
            os.close(self.fd)

    receiver, sender = pair
    messages.send(sender, b"x", fds=(Temporary(b"%d" % number) for number in range(3)))
    assert contents(receiver, 9) == [b"0", b"1", b"2"]
