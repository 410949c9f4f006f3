"""32 threads send, receive and close messages at the same time.

Each message arrives once, names its own sender, and has its own descriptors.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections import Counter
from typing import NamedTuple

import pytest
from crowd import THREADS
from peers import SO_PEERPIDFD, Child, attach, become, fdinfo, kernel_has, needs_root, own

from peercred import Cred, messages

PIDFD = kernel_has(SO_PEERPIDFD)

# The sender's pid, uid and gid, as it reads them of itself, and a number.
RECORD = struct.Struct("iIIi")


def send_records(sender, user, number):
    """Send so many records as this user, some with descriptors."""
    become(uid=3000 + user, gid=4000 + user)
    for i in range(number):
        data = RECORD.pack(os.getpid(), os.getuid(), os.getgid(), i)
        if i % 5:
            sender.send(data)
        else:
            attach(sender, data, i % 4)


class Mailbox:
    """Receives records in many threads, until all have arrived."""

    def __init__(self, expected):
        self.expected, self.seen, self.lock, self.all = expected, Counter(), threading.Lock(), threading.Event()

    def receive(self, receiver):
        with messages.receive(receiver, RECORD.size, socket.MSG_DONTWAIT, max_fds=3) as message:
            *ids, number = RECORD.unpack(message.data)
            assert message.cred == Cred(*ids)
            assert len(message.fds) == (0 if number % 5 else number % 4)
            assert len({os.fstat(fd).st_ino for fd in message.fds}) <= 1
            if message.pidfd is not None:
                assert fdinfo(message.pidfd) == ids[0]
        with self.lock:
            self.seen[message.data] += 1
            if self.seen.total() >= self.expected:
                self.all.set()

    def receive_all(self, receiver, done):
        while not self.all.is_set() and not done.is_set():
            try:
                self.receive(receiver)
            except BlockingIOError:
                select.select([receiver], [], [], 0.01)

    def check(self):
        """Each record has arrived once."""
        assert self.seen.total() == len(self.seen) == self.expected


@pytest.fixture(params=["datagram", "seqpacket"])
def kind(request):
    """The types of Unix socket that keep messages apart."""
    return {"datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}[request.param]


@needs_root
def test_receivers_of_one_socket(kind, crowd, effort):
    """32 threads that share a receiver get each message of four users once."""
    each = 250 * effort
    receiver, sender = socket.socketpair(socket.AF_UNIX, kind)
    with receiver, sender, contextlib.ExitStack() as stack:
        messages.enable(receiver, pidfd=PIDFD)
        mailbox = Mailbox(4 * each)
        children = [stack.enter_context(Child(lambda user=user: send_records(sender, user, each))) for user in range(4)]
        crowd([lambda done: mailbox.receive_all(receiver, done)] * THREADS)
        mailbox.check()
        for child in children:
            child.result()


class Pair(NamedTuple):
    """Two connected sockets; `conn` receives."""

    conn: socket.socket
    sender: socket.socket


@needs_root
def test_receiver_that_changes(kind, swap, crowd, effort):
    """While dup2(2) replaces the receiver, messages name their own senders."""
    each = 250 * effort
    with contextlib.ExitStack() as stack:
        pairs = [Pair(*map(stack.enter_context, socket.socketpair(socket.AF_UNIX, kind))) for _ in range(4)]
        for pair in pairs:
            messages.enable(pair.conn, pidfd=PIDFD)
        changing = stack.enter_context(socket.socket(fileno=os.dup(pairs[0].conn.fileno())))
        mailbox = Mailbox(4 * each)
        children = [
            stack.enter_context(Child(lambda user=user, pair=pair: send_records(pair.sender, user, each)))
            for user, pair in enumerate(pairs)
        ]
        workers = [lambda done: mailbox.receive_all(changing, done)] * THREADS
        crowd(workers, [lambda done: swap(changing.fileno(), pairs, done)])
        mailbox.check()
        for child in children:
            child.result()


def test_senders_and_receivers_of_their_own(crowd, effort):
    """32 threads, each with two sockets, receive just what they have sent."""
    me = own()

    def talk(number, ours, theirs):
        messages.enable(ours, pidfd=PIDFD)
        for i in range(50 * effort):
            data = b"%d %d" % (number, i)
            messages.send(theirs, data, cred=me, fds=[theirs, ours])
            with messages.receive(ours, 100, max_fds=i % 3) as message:
                assert (message.data, message.cred) == (data, me)
                expected = [os.fstat(sock.fileno()) for sock in (theirs, ours)][: i % 3]
                assert list(map(os.path.samestat, map(os.fstat, message.fds), expected)) == [True] * (i % 3)

    with contextlib.ExitStack() as stack:
        pairs = [tuple(map(stack.enter_context, socket.socketpair())) for _ in range(THREADS)]
        crowd([lambda done, number=number, pair=pair: talk(number, *pair) for number, pair in enumerate(pairs)])
