"""read(): in threads, after a fork and in signal handlers."""

from __future__ import annotations

import errno
import os
import threading

from peers import become, call, connect, interrupted_by, needs_root, outcome

import peercred
from peercred import Cred


def test_thread_that_connects_is_known_by_its_process(server):
    """A thread that connects is known by its process's pid."""
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


def test_read_after_fork(pair):
    """A child reads the connection that it inherited."""
    assert call(lambda: peercred.read(pair[0])) == Cred(os.getpid(), os.geteuid(), os.getegid())


@needs_root
def test_every_connection_has_its_own_answer_in_threads(server):
    """Sixteen threads read sixteen peers at once, and no answer strays.

    In between they fail on another socket.
    """
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
def test_read_in_a_signal_handler(server, peer_as, pair):
    """A handler that reads, and fails, disturbs no read, and no failure."""

    def handler(*_):
        handled.append((peercred.read(conn).uid, outcome(peercred.read, -1)))

    handled = []
    with peer_as(1001) as (_, conn), interrupted_by(handler, 0.0005, 0.0005):
        while len(handled) < 200:
            assert peercred.read(pair[0]).uid == os.geteuid()
            assert outcome(peercred.read, server) == (peercred.NoPeerError, errno.ENOTCONN)
    assert set(handled) == {(1001, (OSError, errno.EBADF))}
