"""Senders that attach many descriptors, or sockets that hold each other.

receive() hands out at most max_fds descriptors, and closes all others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections import Counter

import pytest
from peers import Child, attach, call, fdinfo, fill_table, needs_pidfd, open_descriptors, outcome, own
from raw import own_creds, rights, send_raw

from peercred import Cred, messages


@contextlib.contextmanager
def all_closed():
    """Give a descriptor to attach, and check that all copies are closed.

    At the end neither a process nor a message in a queue may have one.
    """
    watched, attached = os.pipe()
    try:
        try:
            yield attached
        finally:
            os.close(attached)
        # Those that are only in queues are collected when a socket is closed,
        # unless Linux is collecting already.
        while not select.select([watched], [], [], 0.1)[0]:
            socket.socket(socket.AF_UNIX).close()
        assert os.read(watched, 1) == b""
    finally:
        os.close(watched)


@pytest.mark.parametrize("max_fds", [0, 2, 4, 253])
def test_descriptors_in_several_control_messages(ends, max_fds):
    """max_fds limits the descriptors of all control messages together.

    They arrive in their order.
    """
    receiver, sender = ends
    messages.enable(receiver)
    with all_closed() as attached:
        send_raw(sender, rights(0, attached) + own_creds() + rights(attached) + rights(0))
        before = open_descriptors()
        with messages.receive(receiver, 100, max_fds=max_fds) as message:
            assert message.cred == own()
            expected = [os.fstat(fd) for fd in (0, attached, attached, 0)][:max_fds]
            assert all(map(os.path.samestat, map(os.fstat, message.fds), expected))
            assert len(message.fds) == len(expected) == len(open_descriptors()) - len(before)
            assert bool(message.flags & socket.MSG_CTRUNC) == (max_fds < 4)


@pytest.mark.parametrize("max_fds", [0, 1, 253])
@pytest.mark.parametrize("pidfd", [False, pytest.param(True, marks=needs_pidfd)], ids=["no pidfd", "pidfd"])
def test_flood(ends, max_fds, pidfd, effort):
    """Of 253 descriptors in each message, at most max_fds are handed out.

    The messages arrive whole, and all other descriptors are closed.
    """
    receiver, sender = ends
    messages.enable(receiver, pidfd=pidfd)
    sender.setblocking(False)
    with all_closed() as attached:
        before = open_descriptors()
        for _ in range(effort):
            sent = 0
            while sent < 50:
                try:
                    send_raw(sender, own_creds() + rights(*[attached] * 253))
                except OSError as error:  # the queue is full, or a user has no more descriptors to send
                    assert error.errno in {errno.EAGAIN, errno.ETOOMANYREFS}
                    break
                sent += 1
            assert sent > 1
            for _ in range(sent):
                with messages.receive(receiver, 1, socket.MSG_DONTWAIT, max_fds=max_fds) as message:
                    assert (message.data, message.cred, len(message.fds)) == (b"x", own(), max_fds)
                    assert bool(message.flags & socket.MSG_CTRUNC) == (max_fds < 253)
                    assert message.pidfd is None or fdinfo(message.pidfd) == os.getpid()
                    kept = max_fds + (message.pidfd is not None)
                    assert len(open_descriptors()) - len(before) == kept


@pytest.mark.parametrize("max_fds", [0, 1, 253])
def test_flood_into_a_full_table(ends, max_fds):
    """Without a free descriptor, messages still arrive whole."""
    receiver, sender = ends
    messages.enable(receiver)
    sender.setblocking(True)

    def flood():
        for _ in range(20):
            attach(sender, b"x", 40)  # a user may have 1024 in queues

    def full():
        taken = fill_table()
        got = Counter()
        for _ in range(20):
            message = messages.receive(receiver, 1, max_fds=max_fds)
            got[message.data, message.cred, message.fds, message.flags] += 1
        # The table is as full as it was.
        return got, outcome(os.dup, 0), len({os.fstat(fd).st_ino for fd in taken})

    with Child(flood) as child, Child(full) as reader:
        expected = (b"x", Cred(child.pid, os.getuid(), os.getgid()), (), socket.MSG_CTRUNC)
        assert reader.result() == ({expected: 20}, (OSError, errno.EMFILE), 1)


@needs_pidfd
def test_flood_into_the_last_place(ends):
    """If a sender's descriptor takes the place of the pidfd, receive() says so.

    There is one free descriptor. Whatever takes it, no pidfd of another
    process is handed out, and the place is free again in the end.
    """
    receiver, sender = ends
    messages.enable(receiver, pidfd=True)
    for _ in range(2):
        attach(sender, b"x", 253)

    def nearly_full():
        taken = fill_table()
        os.close(taken[-1])
        for max_fds in (0, 253):
            with messages.receive(receiver, 1, max_fds=max_fds) as message:
                assert len(message.fds) <= max_fds
                assert message.flags == socket.MSG_CTRUNC
                assert message.pidfd is None or fdinfo(message.pidfd) == os.getppid()
                assert (message.pidfd is None) == (message.pidfd_error is not None)
        assert os.dup(0) == taken[-1]

    call(nearly_full)


@pytest.mark.parametrize("max_fds", [0, 1])
@pytest.mark.parametrize("flags", [0, socket.MSG_PEEK], ids=["receive", "peek"])
def test_sockets_inside_sockets(ends, max_fds, flags):
    """Sockets in the queues of attached sockets are closed with them."""
    receiver, sender = ends
    messages.enable(receiver)
    with all_closed() as attached:
        inner = os.dup(attached)
        for _ in range(3):  # with the message itself that is four, as many as Linux 6.1 allows
            left, right = socket.socketpair(socket.AF_UNIX, receiver.type)
            with left:
                socket.send_fds(left, [b"x"], [inner, left.fileno()])
            os.close(inner)
            inner = right.detach()
        send_raw(sender, rights(inner))
        os.close(inner)
        with messages.receive(receiver, 100, flags, max_fds=max_fds) as message:
            assert (message.data, message.cred, len(message.fds)) == (b"x", own(), max_fds)
        if flags:
            messages.receive(receiver, 100).close()


@pytest.mark.parametrize("max_fds", [0, 1, 3])
def test_socket_in_its_own_queue(ends, max_fds):
    """A receiver that is attached to its own messages can still be closed.

    All descriptors in its queue are closed with it.
    """
    receiver, sender = ends
    messages.enable(receiver)
    with all_closed() as attached:
        for _ in range(5):
            send_raw(sender, rights(receiver.fileno(), sender.fileno(), attached))
        for _ in range(3):
            with messages.receive(receiver, 1, max_fds=max_fds) as message:
                assert (message.data, message.cred, len(message.fds)) == (b"x", own(), max_fds)
        messages.receive(receiver, 1, socket.MSG_PEEK, max_fds=max_fds).close()
        sender.close()  # two messages are still in the queue, and refer to it
        receiver.close()
        socket.socket(socket.AF_UNIX).close()  # Linux looks for cycles when a socket is closed
