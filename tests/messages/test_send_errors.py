"""messages.send(): the limits of the kernel, and what an error says."""

from __future__ import annotations

import errno
import os
import resource
import socket

import pytest
from peers import Holder, become, call, needs_root

from peercred import Cred, messages


def test_highest_number(pair):
    """The highest possible number reaches the kernel, which says EBADF."""
    with pytest.raises(OSError, match=rf"sending with the descriptors \({2**31 - 1},\)") as caught:
        messages.send(pair[0], b"x", fds=[2**31 - 1])
    assert caught.value.errno == errno.EBADF


@needs_root
def test_too_many_in_flight():
    """ETOOMANYREFS: too many descriptors are in messages not yet received."""

    def send_on():
        become(uid=1003, gid=1003)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises(OSError, match=r"sending with the descriptors \(0, 0, ") as caught:
            for _ in range(100):
                messages.send(ours, b"x", fds=[0] * 50)
        return caught.value.errno

    assert call(send_on) == errno.ETOOMANYREFS


def test_no_descriptors(pair):
    """An error about credentials alone names them, and no descriptors."""
    claim = Cred(2**22, os.getuid(), os.getgid())  # no process can have this pid
    with pytest.raises(OSError, match=r"sending as Cred\([^()]*\)$") as caught:
        messages.send(pair[0], b"x", cred=claim)
    assert caught.value.errno in (errno.ESRCH, errno.EPERM)


class Number(int):
    """An int that has a fileno() as well."""

    def fileno(self):
        return int(self)


def test_number_with_a_fileno(pair):
    """An int with a fileno() is sent like both."""
    receiver, sender = pair
    messages.send(sender, b"x", fds=[Number(0)])
    with messages.receive(receiver, 10, max_fds=1) as message:
        assert os.path.samestat(os.fstat(message.fds[0]), os.fstat(0))


def test_plain_datagram(place):
    """An error about a message alone is the standard library's own."""
    names = [str(place / name) for name in ("one", "two")]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as two,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger,
    ):
        one.bind(names[0])
        two.bind(names[1])
        one.connect(names[1])  # from now on it receives from two alone
        with pytest.raises(PermissionError) as caught:
            messages.send(stranger, b"x", address=names[0])
        assert str(caught.value) == str(PermissionError(errno.EPERM, os.strerror(errno.EPERM)))


@pytest.mark.parametrize("fds", [[None], ["5"], [5.0], [True], [(0,)], [Holder(None)], [Holder(0.0)]])
def test_what_holds_no_descriptor(pair, fds):
    """The error says what may be attached."""
    with pytest.raises(TypeError, match=r"^fds must hold descriptors or objects with fileno\(\), not "):
        messages.send(pair[0], b"x", fds=fds)


@pytest.mark.parametrize("fds", [b"ab", bytearray(b"ab"), memoryview(b"ab")], ids=type)
def test_bytes_are_no_descriptors(pair, fds):
    """Bytes are an iterable of ints, but the error says what is expected."""
    with pytest.raises(TypeError, match=r"^fds must be an iterable of descriptors, not "):
        messages.send(pair[0], b"x", fds=fds)


@pytest.mark.parametrize("number", [-1, 2**31, 2**64])
def test_number_that_lies_about_its_size(pair, number):
    """A descriptor is checked by its value, not by a subclass's operators."""

    class Liar(int):
        def __ge__(self, other):
            return True

        __lt__ = __le__ = __gt__ = __ge__

    with pytest.raises(ValueError, match=f"none has the number {number}:"):
        messages.send(pair[0], b"x", fds=[Liar(number)])
