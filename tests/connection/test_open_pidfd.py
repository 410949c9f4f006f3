"""open_pidfd(): the very process that connected.

The oracles are os.pidfd_open and /proc/self/fdinfo.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal

import pytest
from peers import (
    connect,
    fdinfo,
    identity,
    in_pid_namespace,
    needs_namespaces,
    needs_pidfd,
    needs_pidfd_open,
    own_identity,
    stranger_with,
)
from questions import OPEN_PIDFD

import peercred

pytestmark = [needs_pidfd, needs_pidfd_open]


@pytest.fixture
def opened(peer_as):
    """A child that has connected, the connection, and the child's pidfd."""
    with peer_as() as (child, conn), OPEN_PIDFD.answered(conn) as fd:
        yield child, conn, fd


def test_is_the_process_that_connected(opened):
    """The pidfd refers to the process that connected."""
    child, conn, fd = opened
    assert fdinfo(fd) == child.pid == peercred.read(conn).pid
    assert identity(fd) == own_identity(child.pid)


def test_signals(opened):
    """signal.pidfd_send_signal reaches the peer."""
    child, _, fd = opened
    signal.pidfd_send_signal(fd, 0)
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    _, status = os.waitpid(child.pid, 0)
    child.forget()
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_poll_says_when_it_ends(opened):
    """The pidfd becomes readable when the process ends."""
    child, _, fd = opened
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    assert poller.poll(0) == []
    child.end()
    assert poller.poll(0) == [(fd, select.POLLIN)]


def test_waitid_of_a_child(opened):
    """os.waitid(P_PIDFD) tells how a child ended."""
    child, _, fd = opened
    child.end()
    result = os.waitid(os.P_PIDFD, fd, os.WEXITED)
    child.forget()
    assert (result.si_pid, result.si_status) == (child.pid, 0)


def test_asyncio_add_reader(opened):
    """An event loop sees the end of the process."""
    child, _, fd = opened

    async def main():
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(fd, ended.set)
        try:
            await asyncio.sleep(0)
            assert not ended.is_set()
            child.end()
            await ended.wait()
        finally:
            loop.remove_reader(fd)

    asyncio.run(main())


def test_zombie(peer_as):
    """A zombie is still that process: readable, and signal 0 succeeds."""
    with peer_as() as (child, conn):
        child.end()
        fd = peercred.open_pidfd(conn)
        assert fdinfo(fd) == child.pid
        assert identity(fd) == own_identity(child.pid)
        assert select.select([fd], [], [], 0)[0] == [fd]
        signal.pidfd_send_signal(fd, 0)
        os.close(fd)


def test_reaped(peer_as):
    """A reaped peer has a pidfd of nobody, or ProcessLookupError.

    It is never another process.
    """
    with peer_as() as (child, conn):
        child.reap()
        pid_or_none(conn)


def pid_or_none(conn):
    """What a dead and reaped peer's connection must give."""
    try:
        fd = peercred.open_pidfd(conn)
    except ProcessLookupError as error:
        assert error.errno == errno.ESRCH
        return None
    try:
        assert fdinfo(fd) == -1
        assert select.select([fd], [], [], 0)[0] == [fd]
        with pytest.raises(ProcessLookupError):
            signal.pidfd_send_signal(fd, 0)
        return identity(fd)
    finally:
        os.close(fd)


@needs_namespaces
def test_peer_in_another_pid_namespace(server):
    """A peer that cannot be seen has the right pidfd, which works with poll."""

    def inside():
        with connect(server.getsockname()) as client:
            fd = peercred.open_pidfd(client)
            return peercred.read(client).pid, identity(fd), select.select([fd], [], [], 0)[0]

    assert in_pid_namespace(inside) == (None, own_identity(os.getpid()), [])


@needs_namespaces
def test_recycled_pid(peer_as):
    """The pidfd is not that of a stranger that has the dead peer's number.

    The pid that read() gives is.
    """

    def inside():
        with peer_as(1001) as (peer, conn):
            peer.reap()
            with stranger_with(peer.pid) as stranger:
                assert peercred.read(conn) == peercred.Cred(stranger.pid, 1001, 2001)
                assert own_identity(stranger.pid) != pid_or_none(conn)

    in_pid_namespace(inside)
