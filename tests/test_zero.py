"""Zero is a valid descriptor, and a valid number of groups."""

from __future__ import annotations

import os
import socket

import pytest
from peers import call, fdinfo, needs_pidfd, needs_root

import peercred


def without_stdin(function):
    """What it returns in a process where descriptor 0 is free."""
    return call(lambda: os.close(0) or function())


def test_socket_at_descriptor_0():
    """It is asked like any other."""

    def ask():
        ours, theirs = socket.socketpair()
        with ours, theirs:
            return ours.fileno(), peercred.read(0).pid == peercred.read(ours).pid == os.getpid()

    assert without_stdin(ask) == (0, True)


@needs_pidfd
def test_pidfd_at_descriptor_0(pair):
    """It is the caller's, like any other."""

    def ask():
        fd = peercred.open_pidfd(pair[0])
        return fd, fdinfo(fd)

    assert without_stdin(ask) == (0, os.getpid())


def test_require_beside_a_free_descriptor_0(pair):
    """The descriptor that require() makes may be 0, and is closed."""

    def ask():
        groups = {os.getegid(), *os.getgroups()}
        cred = peercred.AllowList(gids=groups).require(pair[0])
        return cred.pid, os.path.exists("/proc/self/fd/0")

    assert without_stdin(ask) == (os.getpid(), False)


@needs_root
def test_listener_without_groups():
    """A listening socket has no peer, though the kernel says "no groups"."""

    def ask():
        os.setgroups([])
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("")
            server.listen()
            with pytest.raises(peercred.NoPeerError, match="listening"):
                peercred.read_groups(server)

    call(ask)
