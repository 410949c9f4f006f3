"""read(): who is at the other end, of real processes with other ids, by the oracles of os and /proc."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import threading
from pathlib import Path

import pytest
from peers import (
    CLONE_NEWPID,
    CLONE_NEWUSER,
    Child,
    become,
    call,
    connect,
    exec_cat,
    needs_namespaces,
    needs_root,
    outcome,
    unshare,
)

import peercred
from peercred import Cred


def raw(sock: socket.socket) -> tuple[int, int, int]:
    """The kernel's own bytes, by the stdlib."""
    return struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


@needs_root
def test_accepted_connection_names_the_client_by_effective_ids(listener, kind):
    """A client with three different uids and gids is known by the effective ones."""

    def client():
        become(uid=(1001, 1002, 1003), gid=(2001, 2002, 2003))
        return connect(listener.getsockname(), kind).detach()

    with Child(client) as child:
        conn, _ = listener.accept()
        with conn:
            cred = peercred.read(conn)
            child.result()
            assert cred == Cred(pid=child.pid, uid=1002, gid=2002)
            assert (cred.uid, cred.gid) == (child.status("Uid")[1], child.status("Gid")[1])


@needs_root
def test_clients_own_end_names_the_listener(listener, kind):
    """Seen from the client, the peer is the process that called listen(), with the ids that it had then."""
    with Child(lambda: become(uid=1001, gid=2001) or listener.listen()) as other:
        other.result()
        with connect(listener.getsockname(), kind) as client:
            assert peercred.read(client) == Cred(pid=other.pid, uid=1001, gid=2001)
    listener.listen()  # the last caller counts, for later connections
    with connect(listener.getsockname(), kind) as client:
        assert peercred.read(client) == Cred(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid())


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_socketpair_names_its_maker_at_both_ends(kind):
    """Every type of socketpair, datagrams too, knows the process that made it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs:
        for end in (ours, theirs, ours.fileno()):
            assert peercred.read(end) == Cred(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid())
        assert raw(ours) == (os.getpid(), os.geteuid(), os.getegid())


@needs_root
@pytest.mark.parametrize("id_", [2**31 - 1, 2**31, 3_000_000_000, 2**32 - 2])
def test_ids_are_unsigned(server, id_):
    """Ids above 2^31, which `3i` makes negative, come as they are."""

    def client():
        become(uid=id_, gid=id_ - 1)
        return connect(server.getsockname()).detach()

    with Child(client) as child:
        conn, _ = server.accept()
        with conn:
            assert peercred.read(conn) == Cred(pid=child.pid, uid=id_, gid=id_ - 1)


@needs_root
def test_ids_are_frozen_at_connect(server):
    """Neither setresuid nor exec after connect changes what is known of the client."""

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
    """A socket that travelled by SCM_RIGHTS, or was inherited, answers as before: it is not about the holder."""

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


def test_thread_that_connects_is_known_by_its_process(server):
    """pid is the thread group's, not the thread's."""
    threads = []

    def client():
        threads.append(threading.get_native_id())
        connect(server.getsockname()).close()

    thread = threading.Thread(target=client)
    thread.start()
    thread.join()
    conn, _ = server.accept()
    with conn:
        assert threads != [os.getpid()]
        assert peercred.read(conn).pid == os.getpid()


@needs_root
def test_peer_that_is_gone_is_still_named(server):
    """A zombie, a reaped process, and a connection accepted after that: the answer stays."""

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
    """Shutdown and the peer's close change nothing."""
    ours, theirs = pair
    ours.shutdown(socket.SHUT_RDWR)
    assert peercred.read(ours).uid == os.geteuid()
    theirs.close()
    assert peercred.read(ours) == Cred(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid())


@needs_namespaces
def test_reader_in_a_user_namespace_sees_its_own_numbers(server):
    """Ids are translated at read time: mapped ones into the reader's numbers, all others into 65534."""

    def client():
        become(uid=1001, gid=2001)
        return connect(server.getsockname()).detach()

    def reader():
        before = peercred.read(conn)
        unshare(CLONE_NEWUSER)
        unmapped = peercred.read(conn)
        ours.send(b"x")
        assert ours.recv(1) == b"y"
        return before, unmapped, peercred.read(conn)

    ours, theirs = socket.socketpair()
    with ours, theirs, Child(client) as child:
        conn, _ = server.accept()
        with conn, Child(reader) as other:
            theirs.recv(1)
            Path(f"/proc/{other.pid}/uid_map").write_text("0 1001 1")
            Path(f"/proc/{other.pid}/gid_map").write_text("7 2001 1")
            theirs.send(b"y")
            before, unmapped, translated = other.result()
    overflow = [int(Path(f"/proc/sys/kernel/overflow{name}").read_text()) for name in ("uid", "gid")]
    assert before == Cred(child.pid, 1001, 2001)
    assert unmapped == Cred(child.pid, *overflow)
    assert translated == Cred(child.pid, 0, 7)


@needs_namespaces
def test_pid_is_none_where_the_reader_cannot_see_the_peer(server):
    """From inside a child PID namespace a peer outside has no number; from outside, the one inside has."""

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


def test_read_after_fork(pair):
    """A child reads its inherited connection."""
    assert call(lambda: peercred.read(pair[0])) == Cred(os.getpid(), os.geteuid(), os.getegid())


@needs_root
def test_every_connection_has_its_own_answer_in_threads(server):
    """Sixteen threads read sixteen peers at once, and fail on another socket in between: no answer strays."""
    peers = []
    for number in range(16):

        def client(number=number):
            become(uid=1000 + number, gid=2000 + number)
            connect(server.getsockname()).close()

        call(client)
        peers.append((server.accept()[0], 1000 + number, 2000 + number))
    start = threading.Barrier(len(peers))
    wrong = []

    def hammer(conn, uid, gid):
        start.wait()
        for _ in range(2000):
            cred = peercred.read(conn)
            failure = outcome(peercred.read, server)
            if (cred.uid, cred.gid) != (uid, gid) or failure != (peercred.NoPeerError, errno.ENOTCONN):
                wrong.append((cred, failure))

    threads = [threading.Thread(target=hammer, args=peer) for peer in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for conn, _, _ in peers:
        conn.close()
    assert wrong == []


@needs_root
def test_read_in_a_signal_handler(server, pair):
    """A handler that reads, and fails, in the middle of reads and failures disturbs neither."""

    def client():
        become(uid=1001, gid=2001)
        connect(server.getsockname()).close()

    def handler(*_):
        handled.append((peercred.read(conn).uid, outcome(peercred.read, -1)))

    handled = []
    call(client)
    conn, _ = server.accept()
    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        with conn:
            while len(handled) < 200:
                assert peercred.read(pair[0]).uid == os.geteuid()
                assert outcome(peercred.read, server) == (peercred.NoPeerError, errno.ENOTCONN)
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert set(handled) == {(1001, (OSError, errno.EBADF))}
