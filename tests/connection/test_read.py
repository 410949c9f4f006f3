"""read(): who is at the other end, of real processes with other ids.

The oracles are os and /proc.
"""

from __future__ import annotations

import os
import socket

import pytest
from peers import Child, become, call, connect, exec_cat, needs_root, own_effective, raw

import peercred
from peercred import Cred


@needs_root
def test_accepted_connection_names_the_client_by_effective_ids(listener, peer_as):
    """A client with three different ids is known by the effective ones."""
    with peer_as((1001, 1002, 1003), (2001, 2002, 2003), listener=listener) as (child, conn):
        cred = peercred.read(conn)
        assert cred == Cred(pid=child.pid, uid=1002, gid=2002)
        assert (cred.uid, cred.gid) == (child.status("Uid")[1], child.status("Gid")[1])


@needs_root
def test_clients_own_end_names_the_listener(listener, kind):
    """Seen from the client, the peer is who called listen() last.

    It has the ids that it had then.
    """
    with Child(lambda: become(uid=1001, gid=2001) or listener.listen()) as other:
        other.result()
        with connect(listener.getsockname(), kind) as client:
            assert peercred.read(client) == Cred(pid=other.pid, uid=1001, gid=2001)
    listener.listen()  # the last caller counts, for later connections
    with connect(listener.getsockname(), kind) as client:
        assert peercred.read(client) == own_effective()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_socketpair_names_its_maker_at_both_ends(kind):
    """Both ends of every type of socketpair name the process that made it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs:
        for end in (ours, theirs, ours.fileno()):
            assert peercred.read(end) == own_effective()
        assert raw(ours) == (os.getpid(), os.geteuid(), os.getegid())


@needs_root
@pytest.mark.parametrize("id_", [2**31 - 1, 2**31, 3_000_000_000, 2**32 - 2])
def test_ids_are_unsigned(peer_as, id_):
    """Ids above 2^31, which `3i` makes negative, come as they are."""
    with peer_as(id_, id_ - 1) as (child, conn):
        assert peercred.read(conn) == Cred(pid=child.pid, uid=id_, gid=id_ - 1)


@needs_root
def test_ids_are_frozen_at_connect(server):
    """Neither setresuid nor exec after connect() changes who the client is."""

    def client():
        become(uid=(0, 1001, 0), gid=(0, 2001, 0))
        sock = connect(server.getsockname())
        os.seteuid(0)
        become(uid=1005, gid=2005)
        exec_cat(sock)

    with Child(client) as child:
        conn, _ = server.accept()
        with conn:
            conn.send(b"x")
            assert conn.recv(1) == b"x"  # it is cat by now
            assert child.status("Uid") == [1005] * 4
            assert peercred.read(conn) == Cred(pid=child.pid, uid=1001, gid=2001)


@needs_root
def test_descriptor_that_was_passed_on_still_names_the_connector(server, pair):
    """A socket that was passed on or inherited still names who connected."""

    def client():
        become(uid=1001, gid=2001)
        with connect(server.getsockname()) as sock:
            socket.send_fds(pair[1], [b"x"], [sock.fileno()])

    with Child(client) as child:
        child.result()
        conn, _ = server.accept()
        fds = socket.recv_fds(pair[0], 1, 1)[1]
        with conn, socket.socket(fileno=fds[0]):  # this process now holds both ends
            assert peercred.read(conn) == Cred(pid=child.pid, uid=1001, gid=2001)
            inherited = call(lambda: become(uid=1009, gid=2009) or peercred.read(conn))
            assert inherited == Cred(pid=child.pid, uid=1001, gid=2001)


@needs_root
def test_peer_that_is_gone_is_still_named(server):
    """A peer is named when it is a zombie, reaped, and accepted after that."""

    def client():
        become(uid=1001, gid=2001)
        connect(server.getsockname()).detach()
        connect(server.getsockname()).close()

    with Child(client) as child:
        expected = Cred(pid=child.pid, uid=1001, gid=2001)
        child.result()
        conn, _ = server.accept()
        with conn:
            child.end()
            assert peercred.read(conn) == expected
            child.reap()
            assert not os.path.exists(f"/proc/{child.pid}")
            assert peercred.read(conn) == expected
        conn, _ = server.accept()
        with conn:
            assert peercred.read(conn) == expected


def test_shut_down_connection_still_names_its_peer(pair):
    """A peer is named after a shutdown and after its own close."""
    ours, theirs = pair
    ours.shutdown(socket.SHUT_RDWR)
    assert peercred.read(ours).uid == os.geteuid()
    theirs.close()
    assert peercred.read(ours) == own_effective()
