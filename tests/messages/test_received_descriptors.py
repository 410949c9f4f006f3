"""receive(max_fds=...): descriptors that the receiver asks for."""

from __future__ import annotations

import os
import socket

import pytest
from peers import attach, call, fdinfo, fill_table, needs_pidfd, open_descriptors, own

from peercred import messages


@pytest.mark.parametrize("number", [1, 2, 253])
@pytest.mark.parametrize("room", [0, 1])
@pytest.mark.parametrize("flags", [0, socket.MSG_PEEK, socket.MSG_CMSG_CLOEXEC])
def test_received(ends, number, room, flags):
    """As many descriptors arrive as were attached, of the very file.

    They are close-on-exec, whether it is asked for or not. Each MSG_PEEK makes
    new ones.
    """
    receiver, sender = ends
    messages.enable(receiver)
    attach(sender, b"x", number, file=__file__)
    with messages.receive(receiver, 100, flags, max_fds=min(number + room, 253)) as message:
        assert (message.data, message.cred, message.flags) == (b"x", own(), 0)
        assert len(set(message.fds)) == number
        for fd in message.fds:
            assert os.path.samestat(os.fstat(fd), os.stat(__file__))
            assert not os.get_inheritable(fd)


def test_other_integers(ends):
    """Flags and max_fds may be other integers than ints, as NumPy's are."""

    class Two:
        def __index__(self):
            return 2

    receiver, sender = ends
    messages.enable(receiver)
    attach(sender, b"x", 2)
    for flags in (Two(), 0):
        with messages.receive(receiver, 100, flags, max_fds=Two()) as message:
            assert len(message.fds) == socket.MSG_PEEK == 2


@pytest.mark.parametrize(("attached", "max_fds"), [(2, 1), (3, 2), (253, 1), (253, 252)])
@pytest.mark.parametrize("label", [True, False])
def test_more_than_there_is_room_for(ends, attached, max_fds, label):
    """Of too many descriptors the first arrive, and MSG_CTRUNC is in the flags.

    The others are lost or closed.
    """
    receiver, sender = ends
    messages.enable(receiver, label=label)
    attach(sender, b"x", attached)
    before = open_descriptors()
    with messages.receive(receiver, 100, max_fds=max_fds) as message:
        assert (len(message.fds), message.cred) == (max_fds, own())
        assert message.flags == socket.MSG_CTRUNC
        assert len(open_descriptors().keys() - before.keys()) == max_fds


@needs_pidfd
@pytest.mark.parametrize("number", [0, 1, 2, 253])
@pytest.mark.parametrize("label", [True, False])
def test_everything_in_one_message(ends, number, label):
    """Credentials, pidfd, label and descriptors arrive in one message."""
    receiver, sender = ends
    messages.enable(receiver, pidfd=True, label=label)
    attach(sender, b"x", number)
    with messages.receive(receiver, 100, max_fds=number) as message:
        assert (message.cred, fdinfo(message.pidfd), message.pidfd_error) == (own(), os.getpid(), None)
        assert (len(message.fds), message.flags) == (number, 0)


def test_with_nothing_enabled(ends):
    """Descriptors arrive without credentials too."""
    receiver, sender = ends
    attach(sender, b"x", 1)
    with messages.receive(receiver, 100, max_fds=1) as message:
        assert (message.cred, len(message.fds), message.flags) == (None, 1, 0)


@pytest.mark.parametrize("number", [-1, 254, 2**31, 2**64, -(2**64)])
def test_max_fds_out_of_range(pair, number):
    """max_fds is refused if the kernel cannot send so many."""
    with pytest.raises(ValueError, match=f"^max_fds must be from 0 to 253 .the kernel's limit., not {number}$"):
        messages.receive(pair[0], 10, max_fds=number)


@pytest.mark.parametrize("number", [None, "1", 1.5, (1,)])
def test_max_fds_is_an_int(pair, number):
    """max_fds must be an int."""
    with pytest.raises(TypeError):
        messages.receive(pair[0], 10, socket.MSG_DONTWAIT, max_fds=number)


def test_full_table(ends):
    """As many descriptors arrive as the table has room for, with MSG_CTRUNC.

    Data and credentials are whole.
    """
    receiver, sender = ends
    messages.enable(receiver)
    attach(sender, b"x", 5)

    def nearly_full():
        for fd in fill_table()[-2:]:
            os.close(fd)
        with messages.receive(receiver, 1, max_fds=5) as message:
            answer = message.data, message.cred.uid, len(message.fds), message.flags
        return answer, os.dup(0), os.dup(0)

    answer, *free = call(nearly_full)
    assert answer == (b"x", os.getuid(), 2, socket.MSG_CTRUNC)
    assert free == [62, 63]


def test_socket_that_carries_itself(pair):
    """A descriptor of the connection that it arrives on is like any other."""
    receiver, sender = pair
    messages.enable(receiver)
    for _ in range(3):
        messages.send(sender, b"x", fds=[sender, receiver])
        with messages.receive(receiver, 100, max_fds=2) as message:
            assert [
                os.path.samestat(os.fstat(fd), os.fstat(sock.fileno()))
                for fd, sock in zip(message.fds, (sender, receiver), strict=True)
            ] == [True, True]


def test_close_on_exec_whatever_the_flags_are(ends):
    """No kind of flags, not even one with its own operators, changes that."""

    class Flags(int):
        def __or__(self, other):
            return 0

    receiver, sender = ends
    attach(sender, b"x", 1)
    with messages.receive(receiver, 100, Flags(0), max_fds=1) as message:
        assert [os.get_inheritable(fd) for fd in message.fds] == [False]
