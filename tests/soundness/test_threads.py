"""32 threads ask about peers while others change what a descriptor refers to.

Each answer is about one peer, or it is an error. Each peer is a process whose
uid, gid and groups tell which one it is, so an answer about two would show.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import threading
from collections import Counter
from functools import partial
from itertools import cycle, product
from typing import NamedTuple

import pytest
from crowd import THREADS, attempts
from peers import needs_root, outcome
from questions import QUESTIONS, Peer

import peercred
from peercred import AllowList, Cred

SUPPORTED = [question for question in QUESTIONS if question.supported]

# How many groups each peer has. The library asks for up to 64 at first, and
# again if there are more.
GROUPS = (0, 1, 3, 65, 300)


class Connected(NamedTuple):
    """A connection, and who it is connected to."""

    conn: socket.socket
    peer: Peer


@pytest.fixture
def peers(peer_as):
    """Connections to live processes, with different ids and groups."""
    with contextlib.ExitStack() as stack:
        peers = []
        for number, size in enumerate(GROUPS):
            groups = tuple(range(100_000 * (number + 1), 100_000 * (number + 1) + size))
            child, conn = stack.enter_context(peer_as(uid=3000 + number, gid=4000 + number, groups=groups))
            cred = Cred(child.pid, child.status("Uid")[1], child.status("Gid")[1])
            assert child.status("Groups") == [*groups]
            peers.append(Connected(conn, Peer(cred, groups)))
        yield peers


class Oracle:
    """Asks about a connection, and checks that the answer is about one peer.

    It counts the answers.
    """

    def __init__(self, connected):
        self.peers = [each.peer for each in connected]
        members = self.peers[1::2]
        self.creds, self.members = {peer.cred for peer in self.peers}, {peer.cred for peer in members}
        self.by_uid = AllowList(uids={peer.cred.uid for peer in members})
        # The last group of each member: mixed groups would show there.
        self.by_group = AllowList(gids={peer.groups[-1] for peer in members})
        self.heard = Counter()
        self.errors = set()  # the errors that are allowed
        self.lock = threading.Lock()

    def count(self, key):
        with self.lock:  # without a GIL, += is not atomic
            self.heard[key] += 1

    def ask(self, conn):
        for question in (*(partial(self.answer, question) for question in SUPPORTED), self.require):
            try:
                question(conn)
            except OSError as error:
                if error.errno not in self.errors:
                    raise
                self.count(error.errno)

    def answer(self, question, conn):
        with question.answered(conn) as answer:
            described = [peer for peer in self.peers if question.describes(answer, peer)]
        assert described, "an answer about nobody, or about two"
        for peer in described:
            self.count((question, peer.cred))

    def require(self, conn):
        for allowed in (self.by_uid, self.by_group):
            try:
                cred = allowed.require(conn)
            except PermissionError as refusal:
                assert refusal.errno == errno.EACCES
                named = Cred(*map(int, re.search(r"pid (\d+), uid (\d+), gid (\d+)$", str(refusal)).groups()))
                assert named in self.creds - self.members, "refused by another peer's ids"
                self.count("refused")
            else:
                assert cred in self.members, "admitted by another peer's ids"
                self.count("admitted")

    def heard_all(self):
        """Whether there were answers of every peer and kind."""
        return self.heard.keys() >= {*product(SUPPORTED, self.creds), "refused", "admitted"}


@needs_root
def test_connections_that_do_not_change(peers, server, crowd, effort):
    """Each of 32 threads gets the answers for its own connection.

    In between they fail on another socket.
    """

    def ask(conn, peer):
        cred = peer.cred
        allowed, stranger = AllowList(uids={cred.uid}), AllowList(uids={cred.uid + 1}, gids={0})
        for _ in range(100 * effort):
            for question in QUESTIONS:
                question.assert_about(conn, peer)
                assert outcome(question.function, server) == (peercred.NoPeerError, errno.ENOTCONN)
            assert allowed.require(conn.fileno()) == cred
            with pytest.raises(PermissionError, match=f"uid {cred.uid}, gid {cred.gid}"):
                stranger.require(conn)

    crowd([lambda done, each=each: ask(*each) for each, _ in zip(cycle(peers), range(THREADS), strict=False)])


@needs_root
def test_descriptor_that_changes(peers, swap, crowd, effort):
    """While dup2(2) replaces a socket, each answer is about one of the peers.

    No listening socket is among them, because read() asks the kernel twice. If
    the socket changed in between, the first answer could be a listener's own.
    """
    oracle = Oracle(peers[1:])  # the groups tell these apart
    number = os.dup(peers[1].conn.fileno())

    def ask(done):
        for _ in attempts(40 * effort, done, oracle.heard_all):
            oracle.ask(number)

    try:
        crowd([ask] * THREADS, [lambda done: swap(number, peers[1:], done)] * 2)
    finally:
        os.close(number)
    assert oracle.heard_all()


@needs_root
def test_allow_list_while_the_descriptor_changes(peers, swap, server, crowd, effort):
    """While dup2(2) replaces a socket, require() admits by one peer's ids.

    It mixes neither two peers, nor a peer and a listening socket, which has
    the ids of this process.
    """
    member, stranger, many = peers[2], peers[1], peers[4]
    number = os.dup(member.conn.fileno())
    allowed = AllowList(gids={*member.peer.groups[-1:], os.getegid(), *os.getgroups()})
    heard, lock = Counter(), threading.Lock()

    def ask(done):
        for _ in attempts(200 * effort, done, lambda: len(heard) == 3):
            try:
                cred = allowed.require(number)
            except PermissionError as refusal:
                assert str(member.peer.cred.uid) not in str(refusal)
                answer = "refused"
            except peercred.NoPeerError:
                answer = "no peer"
            else:
                assert cred == member.peer.cred
                answer = "admitted"
            with lock:
                heard[answer] += 1

    listener = Connected(server, None)
    order = [member, stranger, listener, many, listener]
    try:
        crowd([ask] * THREADS, [lambda done: swap(number, order, done)])
    finally:
        os.close(number)
    assert heard.keys() == {"admitted", "refused", "no peer"}


@needs_root
def test_sockets_that_close_and_open(peers, crowd, effort):
    """While sockets are closed and opened, each answer is about one peer.

    Or it is an error. The number of a closed socket may belong to a pidfd, a
    file, or a socket without a peer by then.
    """
    oracle = Oracle(peers[1:])
    oracle.errors = {errno.EBADF, errno.ENOTSOCK, errno.ENOTCONN, errno.ENODATA}
    slots = [socket.socket(fileno=os.dup(peers[1].conn.fileno())) for _ in range(4)]

    def ask(as_socket, done):
        for attempt in attempts(25 * effort, done, lambda: oracle.heard_all() and errno.EBADF in oracle.heard):
            conn = slots[attempt % len(slots)]
            oracle.ask(conn if as_socket else conn.fileno())

    def reopen(slot, done):
        for peer in cycle(peers[1:]):
            if done.is_set():
                return
            slots[slot].close()
            with socket.socket(socket.AF_UNIX), open(os.devnull):
                slots[slot] = socket.socket(fileno=os.dup(peer.conn.fileno()))

    try:
        workers = [lambda done, n=n: ask(n % 2, done) for n in range(THREADS)]
        crowd(workers, [lambda done, slot=slot: reopen(slot, done) for slot in range(len(slots))])
    finally:
        for sock in slots:
            sock.close()
    assert oracle.heard_all()
    assert errno.EBADF in oracle.heard
