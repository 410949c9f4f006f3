"""`peercred --listen PATH`: how it shows those who connect."""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import re
import resource
import signal
import socket

import pytest
from command import (
    ENVIRONMENT,
    KEYS,
    can_connect,
    listening,
    proc_file,
    shown_group,
    shown_user,
    started,
    terminate,
    wait_until,
    wait_until_asleep,
)
from peers import Child, become, connect, needs_passrights, needs_pidfd, needs_root, open_terminal, state


def pid_of(line):
    return int(line.split("\t")[1])


@needs_root
@needs_pidfd
def test_everyone_is_shown(door):
    """Each client is shown on a line with its ids and its program."""

    def visit(uid, gid, groups):
        become(uid=uid, gid=gid, groups=groups)
        return connect(str(door)).detach()

    with listening(door, "--mode", "666") as command:
        assert pid_of(command.first_line) == os.getpid()
        for ids in ((1001, 2001, (4, 27)), (3_000_000_000, 2002, ()), (0, 0, (5,))):
            with Child(lambda ids=ids: visit(*ids)) as child:
                child.result()
                when, pid, program, uid, gid, *groups = command.stdout.readline().rstrip("\n").split("\t")
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", when)
                assert int(pid) == child.pid
                assert program == proc_file(child.pid, "comm").decode().rstrip("\n")
                assert (uid, gid) == (shown_user(ids[0]), shown_group(ids[1]))
                assert groups == [",".join(map(str, ids[2])) or "-"]


def test_json(door):
    """With --json, each client is one JSON object on a line."""
    with listening(door, "--json") as command:
        connect(str(door)).close()
        for line in (command.first_line, command.stdout.readline()):
            peer = json.loads(line)
            assert list(peer) == KEYS
            assert (peer["pid"], peer["uid"]) == (os.getpid(), os.geteuid())


def test_terminal(door):
    """On a terminal there is a head line, and the columns are aligned."""
    ours, theirs = open_terminal()
    with listening(door, stdout=theirs):
        os.close(theirs)
        output = b""
        while output.count(b"\n") < 2:
            output += os.read(ours, 4096)
    os.close(ours)
    head, line = output.decode().splitlines()
    assert head.split() == ["TIME", "PID", "PROGRAM", "UID", "GID", "GROUPS"]
    assert line[head.index("PID") :].split()[0] == str(os.getpid())
    assert line[head.index("UID") :].startswith(f"{shown_user(os.geteuid())} ")


def test_json_on_a_terminal(door):
    """On a terminal, --json writes no head line either."""
    ours, theirs = open_terminal()
    with listening(door, "--json", stdout=theirs):
        os.close(theirs)
        output = b""
        while b"\n" not in output:
            output += os.read(ours, 4096)
    os.close(ours)
    assert json.loads(output)["pid"] == os.getpid()


def test_abstract(place, error_of):
    """The command can listen at an abstract address, which has no file."""
    with listening(f"@{place}/door") as command:
        assert pid_of(command.first_line) == os.getpid()
        assert "Address already in use" in error_of("--listen", f"@{place}/door")
    assert list(place.iterdir()) == []


@needs_pidfd
def test_client_that_has_gone(door):
    """The program of a client that has gone is shown as "-"."""
    with listening(door) as command:
        wait_until_asleep(command)
        command.send_signal(signal.SIGSTOP)
        wait_until(lambda: state(f"/proc/{command.pid}") == "T")
        with Child(lambda: connect(str(door)).close()) as child:
            child.result()
        command.send_signal(signal.SIGCONT)
        _, pid, program, *_ = command.stdout.readline().split("\t")
        assert (int(pid), program) == (child.pid, "-")


def test_more_than_1024_descriptors(door):
    """The command works with descriptors above 1023, which select(2) cannot.

    It has them if it inherits a thousand others.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 2048:
        pytest.skip(reason="needs a hard limit of 2048 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, limits[1]))
    try:
        with open(os.devnull) as file, contextlib.ExitStack() as stack:
            while (descriptor := os.dup(file.fileno())) < 1100:  # until no lower one is free
                stack.callback(os.close, descriptor)
            stack.callback(os.close, descriptor)
            with listening(door, pass_fds=range(3, 1100)) as command:
                assert min({*range(2048)} - {int(name) for name in os.listdir(f"/proc/{command.pid}/fd")}) > 1100
                assert pid_of(command.first_line) == os.getpid()
                terminate(command)
                assert command.stderr.read() == ""
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("spare", [0, 1], ids="{} descriptors left".format)
def test_full_table_of_descriptors(door, spare):
    """Without free descriptors, the command says so, and removes its file."""
    with listening(door) as command:
        wait_until_asleep(command)
        limits = resource.prlimit(command.pid, resource.RLIMIT_NOFILE)
        free = sorted(set(range(100)) - {int(name) for name in os.listdir(f"/proc/{command.pid}/fd")})
        resource.prlimit(command.pid, resource.RLIMIT_NOFILE, (free[spare], limits[1]))
        with connect(str(door)):
            assert command.wait() == 1
        assert re.fullmatch(f"peercred: {door}: Too many open files.*\n", command.stderr.read())
    assert not door.exists()


PRELOADED_ACCEPT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

/* accept4(2) that fails once. */
int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    int (*real)(int, struct sockaddr *, socklen_t *, int) = dlsym(RTLD_NEXT, "accept4");
    static int failed;

    return failed++ ? real(fd, address, length, flags) : (errno = atoi(getenv("ACCEPT_ERRNO")), -1);
}
"""


@pytest.fixture
def failing_accept(preloadable):
    """A function that makes an environment in which accept(2) fails once."""

    def failing_accept(number):
        return {**ENVIRONMENT, "LD_PRELOAD": str(preloadable(PRELOADED_ACCEPT)), "ACCEPT_ERRNO": str(number)}

    return failing_accept


def test_failure(door, failing_accept):
    """A failure ends the command, and its file is removed."""
    with started("--listen", str(door), env=failing_accept(errno.EIO)) as command:
        wait_until(lambda: command.poll() is not None or can_connect(door))
        assert command.wait() == 1
        assert command.stderr.read() == f"peercred: {door}: {os.strerror(errno.EIO)}\n"
    assert not door.exists()


@needs_passrights
def test_no_descriptors_are_taken(door):
    """A client cannot send the command a descriptor.

    Closing a descriptor can block for as long as its sender likes.
    """
    with listening(door) as command:
        wait_until_asleep(command)
        command.send_signal(signal.SIGSTOP)
        with connect(str(door)) as client, pytest.raises(PermissionError):
            client.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [client.fileno()]))])
        command.send_signal(signal.SIGCONT)
        assert pid_of(command.stdout.readline()) == os.getpid()
