"""read(): readers and peers in different namespaces."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from peers import CLONE_NEWPID, CLONE_NEWUSER, Child, connect, needs_namespaces, overflow_ids, raw, unshare

import peercred
from peercred import Cred


@needs_namespaces
def test_reader_in_a_user_namespace_sees_its_own_numbers(peer_as):
    """Ids are translated into the numbers of the reader's user namespace.

    Those without a mapping read as the overflow ids.
    """

    def reader():
        before = peercred.read(conn)
        unshare(CLONE_NEWUSER)
        unmapped = peercred.read(conn)
        ours.send(b"x")
        assert ours.recv(1) == b"y"
        return before, unmapped, peercred.read(conn)

    ours, theirs = socket.socketpair()
    with ours, theirs, peer_as(1001) as (child, conn), Child(reader) as other:
        theirs.recv(1)
        Path(f"/proc/{other.pid}/uid_map").write_text("0 1001 1")
        Path(f"/proc/{other.pid}/gid_map").write_text("7 2001 1")
        theirs.send(b"y")
        before, unmapped, translated = other.result()
    assert before == Cred(child.pid, 1001, 2001)
    assert unmapped == Cred(child.pid, *overflow_ids())
    assert translated == Cred(child.pid, 0, 7)


@needs_namespaces
def test_pid_is_none_where_the_reader_cannot_see_the_peer(server):
    """A peer outside of the reader's PID namespace has a pid of None.

    Seen from outside, a peer inside has a number.
    """

    def inside():
        with connect(server.getsockname()) as client:
            return os.getpid(), raw(client)[0], peercred.read(client)

    def namespace():
        unshare(CLONE_NEWPID)
        with Child(inside) as first:
            conn, _ = server.accept()
            with conn:
                return first.pid, peercred.read(conn), first.result()

    with Child(namespace) as child:
        seen, cred, (own_pid, outsider_pid, outsider) = child.result()
    assert own_pid == 1
    assert cred == Cred(pid=seen, uid=0, gid=0)
    assert outsider_pid == 0
    assert outsider == Cred(pid=None, uid=0, gid=0)
