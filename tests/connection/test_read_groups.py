"""read_groups(): the supplementary groups that the peer had.

The oracle is /proc/<pid>/status.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from peers import CLONE_NEWUSER, Child, call, connect, needs_namespaces, needs_root, overflow_ids, unshare

import peercred

pytestmark = needs_root


GROUPS = {
    "none": (),
    "one": (4,),
    "several": (4, 27, 1000),
    "with the primary": (27, 2001),
    "duplicates": (7, 5, 5, 7, 5),
    "32": tuple(range(100, 132)),
    "a buffer": tuple(range(100, 164)),
    "a buffer and one": tuple(range(100, 165)),
    "257, more than the stdlib can": tuple(range(257)),
    "above 2^31": (2**31, 3_000_000_000, 2**32 - 2),
    "65536, all there can be": tuple(range(3_000_000_000, 3_000_065_536)),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups(peer_as, name):
    """Groups are complete, in the kernel's order and with its duplicates.

    The primary gid is not added.
    """
    with peer_as(1001, 2001, GROUPS[name]) as (child, conn):
        groups = peercred.read_groups(conn)
        assert list(groups) == child.status("Groups")
        assert sorted(groups) == sorted(GROUPS[name])
        assert type(groups) is tuple


def test_own_groups_at_both_ends(pair):
    """Both ends of a socketpair have the groups of its maker."""
    for end in (*pair, pair[0].fileno()):
        assert sorted(peercred.read_groups(end)) == sorted(os.getgroups())


def test_groups_are_frozen_at_connect(server):
    """Groups that are given up or taken after connect() do not count."""

    def client():
        os.setgroups([4, 5])
        sock = connect(server.getsockname())
        os.setgroups([6])
        return sock.detach()

    with Child(client) as child:
        conn, _ = server.accept()
        with conn:
            child.result()
            assert child.status("Groups") == [6]
            assert peercred.read_groups(conn) == (4, 5)


def test_groups_of_a_dead_peer(peer_as):
    """A peer's groups outlive it."""
    with peer_as(1001, 2001, (4, 5)) as (child, conn):
        child.reap()
        assert peercred.read_groups(conn) == (4, 5)


def test_clients_own_end_has_the_listeners_groups(server):
    """A client's end has the groups of the last caller of listen()."""
    with Child(lambda: os.setgroups([8, 9]) or server.listen()) as other:
        other.result()
        with connect(server.getsockname()) as client:
            assert peercred.read_groups(client) == (8, 9)


@needs_namespaces
def test_unmapped_groups(peer_as):
    """Each group without a mapping is the overflow id, in its place.

    None is dropped.
    """

    def reader():
        unshare(CLONE_NEWUSER)
        ours.send(b"x")
        assert ours.recv(1) == b"y"
        return peercred.read_groups(conn)

    ours, theirs = socket.socketpair()
    with ours, theirs, peer_as(1001, 2001, (10, 20, 30, 40)) as (_, conn), Child(reader) as other:
        theirs.recv(1)
        Path(f"/proc/{other.pid}/gid_map").write_text("5 40 1")
        theirs.send(b"y")
        _, overflow = overflow_ids()
        assert other.result() == (overflow, overflow, overflow, 5)


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
