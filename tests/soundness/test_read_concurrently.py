"""read(): in threads, after a fork and in signal handlers."""

from __future__ import annotations

import errno
import os
import threading

from peers import call, connect, interrupted_by, needs_root, outcome

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
