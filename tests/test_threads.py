"""32 threads ask, while others change what is behind the descriptors: an answer is one peer's, or it is an error.

Each peer is a process whose uid, gid and groups tell which one it is, so a
mixture of two shows. It must hold without the GIL as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter
from itertools import count, cycle

import pytest
from peers import Child, become, connect, fdinfo, kernel_has_pidfd, needs_root

import peercred
from peercred import AllowList, Cred, messages

THREADS = 32
DEADLINE = 120  # seconds a thread may take; at most one is needed
PIDFD = kernel_has_pidfd()

# How many groups a peer has: C asks for up to 64, and again if there are more.
GROUPS = (0, 1, 3, 65, 300)


def groups_of(number):
    return tuple(range(100_000 * (number + 1), 100_000 * (number + 1) + GROUPS[number]))


class Peer:
    """A connected process, and what it says of itself."""

    def __init__(self, number, server, children):
        def client():
            become(uid=3000 + number, gid=4000 + number, groups=groups_of(number))
            connect(server.getsockname()).detach()
            return Cred(os.getpid(), os.geteuid(), os.getegid()), tuple(os.getgroups())

        child = children.enter_context(Child(client))
        self.conn = children.enter_context(server.accept()[0])
        self.cred, self.groups = child.result()
        assert len(self.groups) == GROUPS[number]


@pytest.fixture
def peers(server):
    """Live peers. Their sockets stay open until the end."""
    with contextlib.ExitStack() as children:
        yield [Peer(number, server, children) for number in range(len(GROUPS))]


@pytest.fixture
def _often():
    """With a GIL, threads take turns as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


class Crowd:
    """Threads that start together and are waited for. The first exception of one of them fails the test."""

    def __init__(self, deadline):
        self.deadline = deadline
        self.failures, self.threads, self.done, self.start = [], [], threading.Event(), threading.Event()

    def add(self, function):
        def run():
            try:
                assert self.start.wait(self.deadline)
                function(self.done)
            except BaseException as failure:
                self.failures.append(failure)
                self.done.set()

        self.threads.append(threading.Thread(target=run, daemon=True))  # one that hangs must not keep pytest
        self.threads[-1].start()

    def join(self, threads):
        for thread in threads:
            thread.join(self.deadline)
            assert not thread.is_alive(), "a thread hangs"
        if self.failures:
            raise self.failures[0]


@pytest.fixture
def crowd(effort):
    """Ask in threads, until each has asked what it shall, while others make changes. Each is told when to stop."""

    def crowd(questions, changes=()):
        crowd = Crowd(DEADLINE * effort)
        for question in questions:
            crowd.add(question)
        asking = crowd.threads[:]
        for change in changes:
            crowd.add(change)
        crowd.start.set()
        try:
            crowd.join(asking)
        finally:
            crowd.done.set()
            crowd.join(crowd.threads)

    return crowd


def enough(least, done, heard_all):
    """Go on for as many times as asked, and until all was heard that there is to hear."""
    end = time.monotonic() + DEADLINE
    for attempt in count():
        if done.is_set() or (attempt >= least and (heard_all() or time.monotonic() > end)):
            return
        yield attempt


class Oracle:
    """Asks of a connection, and checks that the answer is that of one peer. Counts what it heard."""

    def __init__(self, peers):
        self.creds, self.groups = {peer.cred for peer in peers}, {peer.groups for peer in peers}
        self.pids = {peer.cred.pid for peer in peers}
        self.odd = {peer.cred for number, peer in enumerate(peers) if number % 2}
        self.by_uid = AllowList(uids={cred.uid for cred in self.odd})
        # One group of each peer: the last, in which a mixture would show.
        self.by_group = AllowList(gids={peer.groups[-1] for number, peer in enumerate(peers) if number % 2})
        self.heard = Counter()
        self.errors = set()  # those that may be
        self.lock = threading.Lock()

    def count(self, key):
        with self.lock:  # without a GIL, += loses some
            self.heard[key] += 1

    def ask(self, conn):
        for question in (self.read, self.read_groups, self.require, self.open_pidfd):
            try:
                question(conn)
            except OSError as error:
                if error.errno not in self.errors:
                    raise
                self.count(error.errno)

    def read(self, conn):
        cred = peercred.read(conn)
        assert cred in self.creds
        self.count(cred.uid)

    def read_groups(self, conn):
        groups = peercred.read_groups(conn)
        assert groups in self.groups
        self.count(groups[:1])

    def require(self, conn):
        for allowed in (self.by_uid, self.by_group):
            try:
                cred = allowed.require(conn)
            except PermissionError as refusal:
                assert refusal.errno == errno.EACCES
                named = Cred(*map(int, re.search(r"pid (\d+), uid (\d+), gid (\d+)$", str(refusal)).groups()))
                assert named in self.creds - self.odd, "refused, by the groups of another"
                self.count("refused")
            else:
                assert cred in self.odd, "let in, by the groups of another"
                self.count("let in")

    def open_pidfd(self, conn):
        if not PIDFD:
            return
        pidfd = peercred.open_pidfd(conn)
        try:
            pid = fdinfo(pidfd)
        finally:
            os.close(pidfd)
        assert pid in self.pids

    def heard_all(self):
        """Whether there were answers of every peer and kind."""
        wanted = {cred.uid for cred in self.creds} | {groups[:1] for groups in self.groups} | {"refused", "let in"}
        return self.heard.keys() >= wanted


@needs_root
@pytest.mark.usefixtures("_often")
def test_connections_of_its_own(peers, crowd, effort):
    """Nothing changes: each of 32 threads hears of its peer what that says of itself, whether others ask it or not."""

    def ask(peer):
        allowed, stranger = AllowList(uids={peer.cred.uid}), AllowList(uids={peer.cred.uid + 1}, gids={0})
        for _ in range(100 * effort):
            assert peercred.read(peer.conn) == peer.cred == allowed.require(peer.conn.fileno())
            assert peercred.read_groups(peer.conn) == peer.groups
            with pytest.raises(PermissionError, match=f"uid {peer.cred.uid}, gid {peer.cred.gid}"):
                stranger.require(peer.conn)
            if PIDFD:
                pidfd = peercred.open_pidfd(peer.conn)
                assert fdinfo(pidfd) == peer.cred.pid
                os.close(pidfd)

    crowd([lambda done, peer=peer: ask(peer) for peer, _ in zip(cycle(peers), range(THREADS), strict=False)])


def by_python(number, peers, done):
    """Put one peer's socket after the other behind a descriptor."""
    while not done.is_set():
        for peer in peers:
            os.dup2(peer.conn.fileno(), number)


SWAP = r"""
#include <unistd.h>

void swap(const int *from, int count, int to)
{
    for (int round = 0; round < 10000; round++)
        for (int i = 0; i < count; i++)
            dup2(from[i], to);
}
"""


@pytest.fixture(params=["Python", "C"])
def swap(request):
    """Puts sockets behind a descriptor: in Python, or in C, which does it without the GIL in the middle of calls."""
    if request.param == "Python":
        return by_python
    library = ctypes.CDLL(request.getfixturevalue("preloadable")(SWAP))

    def by_c(number, peers, done):
        numbers = (ctypes.c_int * len(peers))(*(peer.conn.fileno() for peer in peers))
        while not done.is_set():
            library.swap(numbers, len(peers), number)

    return by_c


@needs_root
@pytest.mark.usefixtures("_often")
def test_descriptor_that_changes(peers, swap, crowd, effort):
    """Others dup2 the sockets of other peers over a descriptor that 32 threads ask: each answer is of one of them.

    There is no listening socket among them: `read` asks twice, and its first
    answer could be the listener's own, if another socket answered the second.
    """
    oracle = Oracle(peers[1:])  # groups tell them apart
    number = os.dup(peers[1].conn.fileno())

    def ask(done):
        for _ in enough(40 * effort, done, oracle.heard_all):
            oracle.ask(number)

    try:
        crowd([ask] * THREADS, [lambda done: swap(number, peers[1:], done)] * 2)
    finally:
        os.close(number)
    assert oracle.heard_all()


@needs_root
@pytest.mark.usefixtures("_often")
def test_members_and_strangers_behind_one_number(peers, swap, server, crowd, effort):
    """A list with groups never mixes two: neither two peers, nor a peer and a listening socket, whose ids are ours."""
    member, stranger, many = peers[2], peers[1], peers[4]
    number = os.dup(member.conn.fileno())
    us = peercred.AllowList(gids={*member.groups[-1:], os.getegid(), *os.getgroups()})
    heard, lock = Counter(), threading.Lock()

    class Listener:
        conn, cred = server, None

    def ask(done):
        for _ in enough(200 * effort, done, lambda: len(heard) == 3):
            try:
                cred = us.require(number)
            except PermissionError as refusal:
                assert str(member.cred.uid) not in str(refusal)
                answer = "refused"
            except peercred.NoPeerError:
                answer = "no peer"
            else:
                assert cred == member.cred
                answer = "let in"
            with lock:
                heard[answer] += 1

    order = [member, stranger, Listener, many, Listener]
    try:
        crowd([ask] * THREADS, [lambda done: swap(number, order, done)])
    finally:
        os.close(number)
    assert heard.keys() == {"let in", "refused", "no peer"}


@needs_root
@pytest.mark.usefixtures("_often")
def test_sockets_that_close_and_open(peers, crowd, effort):
    """Others close sockets and open new ones, whose numbers go round: the answer is one peer's, or an error.

    A number may by then belong to a pidfd, a pipe, or a socket without a peer.
    """
    oracle = Oracle(peers[1:])
    oracle.errors = {errno.EBADF, errno.ENOTSOCK, errno.ENOTCONN, errno.ENODATA}
    slots = [socket.socket(fileno=os.dup(peers[1].conn.fileno())) for _ in range(4)]

    def ask(shared, done):
        for attempt in enough(25 * effort, done, lambda: oracle.heard_all() and errno.EBADF in oracle.heard):
            conn = slots[attempt % len(slots)]
            oracle.ask(conn if shared else conn.fileno())

    def reopen(slot, done):
        for peer in cycle(peers[1:]):
            if done.is_set():
                return
            slots[slot].close()
            with socket.socket(socket.AF_UNIX), contextlib.closing(open(os.devnull)):
                slots[slot] = socket.socket(fileno=os.dup(peer.conn.fileno()))

    try:
        questions = [lambda done, n=n: ask(n % 2, done) for n in range(THREADS)]
        crowd(questions, [lambda done, slot=slot: reopen(slot, done) for slot in range(len(slots))])
    finally:
        for sock in slots:
            sock.close()
    assert oracle.heard_all()
    assert errno.EBADF in oracle.heard


# Messages

RECORD = struct.Struct("iIIi")  # pid, uid and gid, as the sender reads them of itself; number


def send_records(sender, number, count):
    become(uid=3000 + number, gid=4000 + number)
    sender.setblocking(True)
    for i in range(count):
        data = RECORD.pack(os.getpid(), os.getuid(), os.getgid(), i)
        if i % 5:
            sender.send(data)
        else:
            socket.send_fds(sender, [data], [0] * (i % 4))


class Mailbox:
    """Receives records in many threads, until all that were sent have arrived."""

    def __init__(self, expected):
        self.expected, self.seen, self.lock, self.all = expected, Counter(), threading.Lock(), threading.Event()

    def receive(self, receiver, max_fds):
        """Whether there was a message."""
        try:
            with messages.receive(receiver, RECORD.size, socket.MSG_DONTWAIT, max_fds=max_fds) as message:
                *ids, number = RECORD.unpack(message.data)
                assert message.cred == Cred(*ids)
                attached = 0 if number % 5 else number % 4
                assert len(message.fds) == min(attached, max_fds)
                assert len({os.fstat(fd).st_ino for fd in message.fds}) <= 1
                if message.pidfd is not None:
                    assert fdinfo(message.pidfd) == ids[0]
        except BlockingIOError:
            return False
        with self.lock:
            self.seen[message.data] += 1
            if self.seen.total() >= self.expected:
                self.all.set()
        return True

    def take(self, receiver, max_fds, done):
        while not self.all.is_set() and not done.is_set():
            if not self.receive(receiver, max_fds):
                select.select([receiver], [], [], 0.01)

    def check(self):
        assert self.seen.total() == len(self.seen) == self.expected  # each once


@pytest.fixture(params=["datagram", "seqpacket"])
def kind_of_messages(request):
    return {"datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}[request.param]


@needs_root
@pytest.mark.usefixtures("_often")
def test_receivers_of_one_socket(kind_of_messages, crowd, effort):
    """32 threads receive what four users send to one socket: each message once, with its own sender's ids."""
    each = 250 * effort
    receiver, sender = socket.socketpair(socket.AF_UNIX, kind_of_messages)
    with receiver, sender, contextlib.ExitStack() as children:
        messages.enable(receiver, pidfd=PIDFD)
        mailbox = Mailbox(4 * each)
        senders = [children.enter_context(Child(lambda n=n: send_records(sender, n, each))) for n in range(4)]
        crowd([lambda done: mailbox.take(receiver, 3, done)] * THREADS)
        mailbox.check()
        for child in senders:
            child.result()


@needs_root
@pytest.mark.usefixtures("_often")
def test_receiver_that_changes(kind_of_messages, swap, crowd, effort):
    """Others put the sockets of other users behind the receiver's descriptor: a message has its own sender's ids."""
    each = 250 * effort

    class Pair:
        def __init__(self):
            self.conn, self.sender = socket.socketpair(socket.AF_UNIX, kind_of_messages)
            messages.enable(self.conn, pidfd=PIDFD)
            stack.enter_context(self.conn)
            stack.enter_context(self.sender)

    with contextlib.ExitStack() as stack:
        pairs = [Pair() for _ in range(4)]
        changing = stack.enter_context(socket.socket(fileno=os.dup(pairs[0].conn.fileno())))
        mailbox = Mailbox(4 * each)
        senders = [
            stack.enter_context(Child(lambda n=n, pair=pair: send_records(pair.sender, n, each)))
            for n, pair in enumerate(pairs)
        ]
        receivers = [lambda done: mailbox.take(changing, 3, done)] * THREADS
        crowd(receivers, [lambda done: swap(changing.fileno(), pairs, done)])
        mailbox.check()
        for child in senders:
            child.result()


@pytest.mark.usefixtures("_often")
def test_senders_and_receivers_of_their_own(crowd, effort):
    """32 threads, each with a pair of sockets, send with credentials and descriptors: nothing of theirs is mixed up."""
    me = Cred(os.getpid(), os.getuid(), os.getgid())

    def talk(number, ours, theirs):
        messages.enable(ours, pidfd=PIDFD)
        for i in range(50 * effort):
            data = b"%d %d" % (number, i)
            messages.send(theirs, data, cred=me, fds=[theirs, ours])
            with messages.receive(ours, 100, max_fds=i % 3) as message:
                assert (message.data, message.cred) == (data, me)
                expected = [os.fstat(sock.fileno()) for sock in (theirs, ours)][: i % 3]
                assert list(map(os.path.samestat, map(os.fstat, message.fds), expected)) == [True] * (i % 3)

    with contextlib.ExitStack() as sockets:
        pairs = [tuple(map(sockets.enter_context, socket.socketpair())) for _ in range(THREADS)]
        crowd([lambda done, number=number, pair=pair: talk(number, *pair) for number, pair in enumerate(pairs)])


@pytest.mark.usefixtures("_often")
def test_one_message_closed_by_all(crowd, effort):
    """32 threads close the same message: each of its descriptors is closed once, and not what has its number next."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in range(5 * effort):
            messages.send(theirs, b"x", fds=[0] * 100)
            message, opened = messages.receive(ours, 1, max_fds=100), []

            def close(done, message=message, opened=opened):
                message.close()
                opened.append(os.dup(1))  # has the number of one that was closed

            crowd([close] * THREADS)
            assert message.fds == ()
            assert len(set(opened)) == THREADS
            for fd in opened:
                os.close(fd)
