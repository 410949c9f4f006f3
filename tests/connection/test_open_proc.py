"""open_proc(): the peer's own directory in /proc, and nobody else's."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from peers import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    LIBC,
    MS_PRIVATE,
    MS_REC,
    Child,
    become,
    call,
    connect,
    in_pid_namespace,
    needs_namespaces,
    needs_pidfd,
    needs_root,
    outcome,
    state,
    stranger_with,
    unshare,
)
from questions import OPEN_PROC

import peercred
from peercred import messages

pytestmark = needs_pidfd

CLONE_FILES = 0x400


def look_up(proc, name):
    """What a file of the directory holds."""
    with open(os.open(name, os.O_RDONLY, dir_fd=proc)) as file:
        return file.read()


def uid_of(proc):
    """The real user id, according to the directory."""
    [line] = [line for line in look_up(proc, "status").splitlines() if line.startswith("Uid:")]
    return int(line.split()[1])


@pytest.fixture
def opened(peer_as):
    """A child that has connected, the connection, and its directory."""
    with peer_as() as (child, conn), OPEN_PROC.answered(conn) as proc:
        yield child, conn, proc


def test_is_the_process_that_connected(opened):
    """It is the very directory /proc/<pid> of the process that connected."""
    child, _, proc = opened
    assert os.path.samestat(os.fstat(proc), os.stat(f"/proc/{child.pid}"))
    assert look_up(proc, "stat").split()[0] == str(child.pid)
    assert os.readlink("exe", dir_fd=proc) == os.readlink(f"/proc/{child.pid}/exe")
    assert os.path.samestat(os.stat("exe", dir_fd=proc), os.stat(sys.executable))
    assert "status" in os.listdir(proc)


@needs_root
def test_without_privilege(peer_as):
    """Other users' processes can be looked at as far as /proc shows them."""

    def look(conn):
        become(uid=1002, gid=1002)
        proc = peercred.open_proc(conn)
        return uid_of(proc), look_up(proc, "comm"), outcome(os.readlink, "exe", dir_fd=proc)

    with peer_as(1001) as (child, conn):
        uid, comm, refused = call(lambda: look(conn))
        assert (uid, comm) == (1001, Path(f"/proc/{child.pid}/comm").read_text())
        assert refused == (PermissionError, errno.EACCES)


def test_zombie(peer_as):
    """A zombie has a directory, but no program any more."""
    with peer_as() as (child, conn):
        child.end()
        proc = peercred.open_proc(conn)
        assert look_up(proc, "stat").split()[2] == "Z"
        assert outcome(os.readlink, "exe", dir_fd=proc) == (FileNotFoundError, errno.ENOENT)
        os.close(proc)


def test_reaped(opened):
    """Once the peer is gone, there is no directory, and the old one is dead."""
    child, conn, proc = opened
    child.reap()
    assert outcome(peercred.open_proc, conn) == (ProcessLookupError, errno.ESRCH)
    for name in ("exe", "status", "task", "nothing"):
        assert outcome(os.stat, name, dir_fd=proc) == (ProcessLookupError, errno.ESRCH)


@needs_namespaces
def test_recycled_pid(peer_as):
    """It never shows a stranger that has the number of the dead peer."""

    def inside():
        with peer_as(1001) as (peer, conn):
            proc = peercred.open_proc(conn)
            assert uid_of(proc) == 1001
            peer.reap()
            with stranger_with(peer.pid) as stranger:
                assert os.path.exists(f"/proc/{stranger.pid}/status")
                return outcome(os.stat, "status", dir_fd=proc), outcome(peercred.open_proc, conn)

    assert in_pid_namespace(inside) == ((ProcessLookupError, errno.ESRCH),) * 2


@needs_namespaces
def test_peer_in_another_pid_namespace(server):
    """A peer that this /proc does not show is not found, and not "gone"."""

    def inside():
        with connect(server.getsockname()) as client:
            return peercred.read(client).pid, outcome(peercred.open_proc, client)

    assert in_pid_namespace(inside) == (None, (FileNotFoundError, errno.ENOENT))


@needs_namespaces
def test_proc_of_the_namespace_outside(server):
    """It is /proc that decides: an old one shows what has no pid for us."""

    def inside():
        with connect(server.getsockname()) as client:
            proc = peercred.open_proc(client)
            return peercred.read(client).pid, look_up(proc, "stat").split()[0]

    def namespace():
        unshare(CLONE_NEWPID)
        return call(inside)

    assert call(namespace) == (None, str(os.getpid()))


@needs_namespaces
@pytest.mark.parametrize("hidepid", [1, 2, 4])
def test_hidden_by_proc(peer_as, hidepid):
    """A peer that /proc hides is not found, and not "gone"."""

    def look(conn):
        unshare(CLONE_NEWNS)
        assert LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0
        if LIBC.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=%d" % hidepid) != 0:
            return ctypes.get_errno()
        become(uid=1002, gid=1002)
        return outcome(peercred.open_proc, conn)

    with peer_as(1001) as (_, conn):
        assert call(lambda: look(conn)) == (FileNotFoundError, errno.ENOENT)


@needs_root
@pytest.mark.parametrize("made_up", [False, True])
def test_without_proc(peer_as, tmp_path, made_up):
    """If there is no /proc, or no procfs at its place, nothing is found."""

    def look(conn):
        if made_up:
            for number in range(64):
                file = tmp_path / f"proc/thread-self/fdinfo/{number}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("pos:\t0\nPid:\t1\n")
            (tmp_path / "proc/1").mkdir()
        os.chroot(tmp_path)
        os.chdir("/")
        return outcome(peercred.open_proc, conn)

    with peer_as() as (_, conn):
        assert call(lambda: look(conn)) == (FileNotFoundError, errno.ENOENT)


@needs_root
def test_thread_with_a_table_of_its_own(peer_as):
    """In such a thread it is the right process, too.

    /proc/self shows the descriptors of the main thread, where the number of the
    pidfd is another peer's.
    """

    def compare(first, second):
        seen = []

        def thread():
            unshare(CLONE_FILES)
            unused = os.dup(0)
            os.close(unused)
            own = [os.dup(0) for _ in range(20)]
            os.close(own[10])
            proc = peercred.open_proc(second)
            seen.append((uid_of(proc), os.fstat(proc).st_ino))

        decoys = [peercred.open_pidfd(first) for _ in range(40)]
        runner = threading.Thread(target=thread)
        runner.start()
        runner.join()
        del decoys
        return seen[0][0]

    with peer_as(1001) as (_, first), peer_as(1002) as (_, second):
        assert call(lambda: compare(first, second)) == 1002


PROGRAM = """
import ctypes, os, socket, sys, threading, time
conn = socket.socket(socket.AF_UNIX)
conn.connect(os.fsdecode(bytes.fromhex(sys.argv[1])))
threading.Thread(target=sys.stdin.read).start()  # lives on, until standard input is closed
conn.send(b"x")
ctypes.CDLL(None).pthread_exit(None)
"""


def test_peer_whose_main_thread_has_ended(server):
    """Such a peer is alive, has a directory, and no `exe`."""
    command = [sys.executable, "-c", PROGRAM, server.getsockname().hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process, server.accept()[0] as conn:
        assert conn.recv(1) == b"x"
        while state(f"/proc/{process.pid}") != "Z":
            time.sleep(0.001)
        proc = peercred.open_proc(conn)
        assert outcome(os.readlink, "exe", dir_fd=proc) == (FileNotFoundError, errno.ENOENT)
        assert look_up(proc, "comm")
        os.close(proc)
        process.kill()


@pytest.fixture
def message_from(datagrams):
    """A function that lets another process send a message, with a pidfd."""
    receiver, sender = datagrams
    messages.enable(receiver, pidfd=True)

    def message_from(function=lambda: None):
        child = Child(lambda: (function(), sender.send(b"x")))
        child.result()
        return child, messages.receive(receiver, 10)

    return message_from


@needs_root
def test_sender_of_a_message(message_from):
    """It is that of the sender, and the message keeps its pidfd."""
    child, message = message_from(lambda: become(uid=1001, gid=1001))
    with child, message:
        pidfd = message.pidfd
        proc = message.open_proc()
        assert (uid_of(proc), look_up(proc, "stat").split()[0]) == (1001, str(child.pid))
        assert not os.get_inheritable(proc)
        assert message.pidfd == pidfd
        child.reap()
        assert outcome(message.open_proc) == (ProcessLookupError, errno.ESRCH)
        assert outcome(os.stat, "status", dir_fd=proc) == (ProcessLookupError, errno.ESRCH)
        os.close(proc)
        assert message.pidfd == pidfd


def test_message_without_a_pidfd(pair, message_from):
    """Without a pidfd, or after it was closed, the error says so."""
    pair[1].send(b"x")
    message = messages.receive(pair[0], 1)
    for each in (message, messages.Message(b"x")):
        with pytest.raises(OSError, match=r"has no pidfd: .*enable") as caught:
            each.open_proc()
        assert caught.value.errno == errno.EBADF
    message = messages.Message(b"x", pidfd_error=OSError(errno.EMFILE, "full"))
    for _ in range(2):
        with pytest.raises(OSError, match="full") as caught:
            message.open_proc()
        assert caught.value is not message.pidfd_error  # whose traceback would grow
    child, message = message_from()
    with child:
        os.close(message.detach_pidfd())
        with pytest.raises(OSError, match=r"has no pidfd: .*was detached or closed") as caught:
            message.open_proc()
        assert caught.value.errno == errno.EBADF


def test_message_with_other_descriptors(datagrams):
    """The reason why there is no pidfd is told, whatever else is attached."""
    receiver, sender = datagrams
    messages.send(sender, b"x", fds=[0])
    with messages.receive(receiver, 1, max_fds=1) as message, pytest.raises(OSError, match="is not enabled"):
        message.open_proc()
    messages.enable(receiver, pidfd=True)
    messages.send(sender, b"x", fds=[0] * 7)
    with messages.receive(receiver, 1, max_fds=1) as message:
        assert message.pidfd is None
        assert outcome(message.open_proc) == (OSError, errno.EMSGSIZE)
