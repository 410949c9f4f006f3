"""Control messages that this kernel never sends, as answers of recvmsg()."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from peers import SCM_PIDFD, SCM_SECURITY, needs_pidfd

from peercred import Cred, messages

CREDS = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", 7, 8, 9))


class Answering(socket.socket):
    """A socket whose recvmsg() answers with this control data."""

    asked = 0

    def answer(self, *control, flags=0):
        def recvmsg(bufsize, room, _):
            self.asked = room
            return b"x", list(control), flags, None

        self.recvmsg = recvmsg


@pytest.fixture
def sock():
    with Answering(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        messages.enable(sock, label=True)
        yield sock


def copies(number):
    return [os.dup(0) for _ in range(number)]


def is_open(fd):
    return os.path.exists(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("length", [4, 5, 6, 7])
def test_part_of_a_number(sock, length):
    """If the last number is cut off, the whole ones before it are received."""
    [fd] = copies(1)
    payload = (struct.pack("i", fd) + bytes(3))[:length]
    sock.answer(CREDS, (socket.SOL_SOCKET, socket.SCM_RIGHTS, payload))
    with messages.receive(sock, 10, max_fds=2) as message:
        assert message.fds == (fd,)
    assert not is_open(fd)


def test_two_pidfds(sock):
    """The message keeps the first pidfd, and the others are closed at once."""
    fds = copies(3)
    sock.answer(CREDS, (socket.SOL_SOCKET, SCM_PIDFD, struct.pack("3i", *fds)))
    with messages.receive(sock, 10) as message:
        assert message.pidfd == fds[0]
        assert [is_open(fd) for fd in fds] == [True, False, False]
        assert message.flags == socket.MSG_CTRUNC
        others = copies(2)  # which get the numbers that are free again
        assert others == fds[1:]
    assert [is_open(fd) for fd in fds] == [False, True, True]
    for fd in others:
        os.close(fd)


def test_whole_label_beside_lost_descriptors(sock):
    """MSG_CTRUNC does not mean that the label was cut off."""
    sock.answer(CREDS, (socket.SOL_SOCKET, SCM_SECURITY, b"label\0"), flags=socket.MSG_CTRUNC)
    message = messages.receive(sock, 10)
    assert (message.cred, message.label, message.flags) == (Cred(7, 8, 9), b"label", socket.MSG_CTRUNC)


@pytest.mark.parametrize("number", [1, 22])
def test_refused_pidfd(sock, number):
    """-EPERM and -EINVAL are no descriptors, so nothing is closed for them."""
    before = os.listdir("/proc/self/fd")
    sock.answer(CREDS, (socket.SOL_SOCKET, SCM_PIDFD, struct.pack("i", -number)))
    with messages.receive(sock, 10) as message:
        assert message.pidfd is None
    assert os.listdir("/proc/self/fd") == before


@needs_pidfd
def test_pidfd_refused_by_eperm(sock):
    """`pidfd_error` is a PermissionError if the payload is -EPERM."""
    messages.enable(sock, pidfd=True)
    sock.answer(CREDS, (socket.SOL_SOCKET, SCM_PIDFD, struct.pack("i", -1)))
    assert type(messages.receive(sock, 10).pidfd_error) is PermissionError


def test_no_pidfd_was_wanted(sock):
    """If no pidfd was asked for, `pidfd_error` is None even with MSG_CTRUNC."""
    sock.answer(CREDS, flags=socket.MSG_CTRUNC)
    assert messages.receive(sock, 10).pidfd_error is None


@pytest.mark.parametrize("creds", [True, False])
def test_room_for_no_descriptor(creds):
    """If no descriptors are asked for, the buffer has no room for even one."""
    with Answering(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        messages.enable(sock, creds=creds)
        sock.answer(*[CREDS] * creds)
        messages.receive(sock, 10)
        assert sock.asked < creds * socket.CMSG_SPACE(12) + socket.CMSG_LEN(4)
