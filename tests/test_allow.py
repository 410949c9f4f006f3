"""AllowList: lets in whom it lists and no one else, of real peers; and refuses a bad list at once."""

from __future__ import annotations

import copy
import dataclasses
import enum
import errno
import os
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from peers import CLONE_NEWUSER, Child, become, call, connect, needs_namespaces, needs_root, outcome, unshare

import peercred
from peercred import AllowList, Cred

REFUSED = (PermissionError, errno.EACCES)
OVERFLOW = {name: int(Path(f"/proc/sys/kernel/overflow{name}").read_text()) for name in ("uid", "gid")}


@pytest.fixture
def peer(server):
    """A function that makes a connection of a process with these ids, and gives what a list says of it."""

    def peer(allowed, uid=1001, gid=2001, groups=()):
        def client():
            become(uid=uid, gid=gid, groups=groups)
            return connect(server.getsockname()).detach()

        with Child(client) as child:
            conn, _ = server.accept()
            child.result()
            with conn:
                answer = outcome(allowed.require, conn)
            return "in" if answer == Cred(child.pid, *(ids[1] for ids in map(child.status, ("Uid", "Gid")))) else answer

    return peer


@needs_root
@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (AllowList(), REFUSED),
        (AllowList(uids={1001}), "in"),
        (AllowList(uids=[0, 1001]), "in"),
        (AllowList(uids={0, 1000, 1002, 2001, 4}), REFUSED),
        (AllowList(uids=range(1000, 2000)), "in"),
        (AllowList(uids=range(1000, 2000, 2)), REFUSED),
        (AllowList(gids={2001}), "in"),
        (AllowList(gids={4}), "in"),
        (AllowList(gids={27, 5, 6}), "in"),
        (AllowList(gids={0, 1001, 5, 28}), REFUSED),
        (AllowList(gids=range(20, 30)), "in"),
        (AllowList(gids=range(28, 1000)), REFUSED),
        (AllowList(uids={0}, gids={27}), "in"),
        (AllowList(uids={1001}, gids={5}), "in"),
        (AllowList(uids={0}, gids={5}), REFUSED),
    ],
    ids=repr,
)
def test_who_is_let_in(peer, allowed, expected):
    """By uid, primary gid or any supplementary group; a uid is no gid, and neither the other way round."""
    assert peer(allowed, uid=1001, gid=2001, groups=(4, 27)) == expected


@needs_root
def test_effective_ids_count(peer):
    """Of a process with three different ids, the effective one decides."""
    ids = {"uid": (1001, 1002, 1003), "gid": (2001, 2002, 2003)}
    assert peer(AllowList(uids={1002}), **ids) == "in"
    assert peer(AllowList(gids={2002}), **ids) == "in"
    assert peer(AllowList(uids={1001, 1003}, gids={2001, 2003}), **ids) == REFUSED


@needs_root
def test_root_needs_a_zero(peer):
    """Root is nobody special."""
    assert peer(AllowList(uids={1000}, gids={27}), uid=0, gid=0) == REFUSED
    assert peer(AllowList(uids={0}), uid=0, gid=0) == "in"


@needs_root
def test_large_ids(peer):
    """Ids above 2^31, and the highest that there is."""
    assert peer(AllowList(uids={3_000_000_000}), uid=3_000_000_000) == "in"
    assert peer(AllowList(gids=range(2**31, 2**32 - 1)), gid=2**32 - 2) == "in"
    assert peer(AllowList(uids={2**32 - 2}), uid=3_000_000_000) == REFUSED


@needs_root
def test_overflow_ids_never_match(peer):
    """Not within a range either: the peer may be anyone without a mapping."""
    everyone = range(2**32 - 1)
    assert peer(AllowList(uids=everyone), uid=OVERFLOW["uid"]) == REFUSED
    assert peer(AllowList(gids=everyone), gid=OVERFLOW["gid"]) == REFUSED
    assert peer(AllowList(gids=everyone), gid=OVERFLOW["gid"], groups=(OVERFLOW["gid"],)) == REFUSED
    assert peer(AllowList(gids=everyone), gid=OVERFLOW["gid"], groups=(OVERFLOW["gid"], 27)) == "in"
    assert peer(AllowList(uids=everyone), uid=OVERFLOW["uid"] - 1) == "in"


@pytest.mark.parametrize("name", ["uids", "gids"])
def test_overflow_ids_cannot_be_listed(name):
    """And the message says why."""
    with pytest.raises(ValueError, match=rf"in {name} is the overflow id: .* no mapping"):
        AllowList(**{name: [0, OVERFLOW[name[:-1]]]})


@needs_namespaces
def test_server_without_a_mapping_lets_nobody_in(server):
    """In a user namespace where server and client both read as 65534, `uids={os.geteuid()}` does not match."""

    def client():
        become(uid=1001, gid=2001)
        return connect(server.getsockname()).detach()

    def unmapped():
        before = AllowList(uids={os.geteuid()}, gids={os.getegid()})
        everyone = AllowList(uids=range(2**32 - 1), gids=range(2**32 - 1))
        unshare(CLONE_NEWUSER)
        assert peercred.read(conn).uid == os.geteuid() == OVERFLOW["uid"]  # what the naive check compares
        with pytest.raises(ValueError, match="overflow id"):
            AllowList(uids={os.geteuid()})
        return outcome(before.require, conn), outcome(everyone.require, conn)

    with Child(client):
        conn, _ = server.accept()
        with conn:
            assert call(unmapped) == (REFUSED, REFUSED)


@needs_root
def test_message_says_who_was_refused(server):
    """pid, uid and gid."""

    def client():
        become(uid=1001, gid=2001)
        return connect(server.getsockname()).detach()

    with Child(client) as child:
        conn, _ = server.accept()
        with conn, pytest.raises(PermissionError, match=f"pid {child.pid}, uid 1001, gid 2001"):
            AllowList(uids={0}).require(conn)


def test_errors_of_the_reads_come_out(server):
    """Who cannot be identified is refused by read()'s own error, whatever the list."""
    everyone = AllowList(uids=range(2**32 - 1))
    assert outcome(everyone.require, server) == (peercred.NoPeerError, errno.ENOTCONN)
    assert outcome(everyone.require, -1) == (OSError, errno.EBADF)
    with pytest.raises(TypeError):
        everyone.require(None)


@pytest.mark.parametrize("ids", [1000, None, 1.0, "", "0", "root", b"", b"0", bytearray(b"0"), memoryview(b"0")])
@pytest.mark.parametrize("name", ["uids", "gids"])
def test_not_an_iterable_of_ints(name, ids):
    """Neither one id, nor text, nor bytes, which would be iterable."""
    with pytest.raises(TypeError, match=rf"^{name} is an iterable of ints"):
        AllowList(**{name: ids})


@pytest.mark.parametrize("id_", [True, False, "0", "root", b"0", None, 0.0, 1000.0, (0,)])
@pytest.mark.parametrize("name", ["uids", "gids"])
def test_ids_are_ints(name, id_):
    """True is not 1, nor a name its number."""
    with pytest.raises(TypeError, match=r"^an id is an int"):
        AllowList(**{name: [0, id_]})


@pytest.mark.parametrize("ids", [[-1], [0, 2**32 - 1], [2**32], [2**64], range(-1, 5), range(5, -2, -1), range(2**32)])
@pytest.mark.parametrize("name", ["uids", "gids"])
def test_ids_are_in_bounds(name, ids):
    """From 0 to 4294967294, of ranges both ends."""
    with pytest.raises(ValueError, match=rf"^-?\d+ in {name} is not an id"):
        AllowList(**{name: ids})


def test_any_iterable_is_read_once():
    """Generators, dictionaries and ints of other classes will do; a range stays one."""
    number = enum.IntEnum("Number", {"ROOT": 0})
    assert AllowList(uids=(n for n in (1, 2))) == AllowList(uids=[2, 1, 1]) == AllowList(uids={1: "a", 2: "b"})
    assert repr(AllowList(uids=[number.ROOT])) == "AllowList(uids={0}, gids=())"
    assert AllowList(uids=range(10**9)).uids == range(10**9)
    assert AllowList(gids=range(0)).gids == range(0)


def test_later_changes_do_not_count(pair):
    """The list is as it was given."""
    uids = {os.geteuid() + 1}
    allowed = AllowList(uids=uids)
    uids.add(os.geteuid())
    assert outcome(allowed.require, pair[0]) == REFUSED


def test_is_a_value():
    """Comparable, hashable, frozen, fit for a log line, and a good citizen of copy and pickle."""
    allowed = AllowList(uids=[1000, 0], gids=range(5, 10))
    assert repr(allowed) == "AllowList(uids={0, 1000}, gids=range(5, 10))"
    assert eval(repr(allowed)) == allowed
    assert repr(AllowList()) == "AllowList(uids=(), gids=())"
    assert hash(allowed) == hash(AllowList(uids={0, 1000}, gids=range(5, 10)))
    assert allowed != AllowList(uids={0, 1000})
    assert AllowList(uids={1}) != AllowList(gids={1})
    assert dataclasses.replace(allowed, uids={5}) == AllowList(uids={5}, gids=range(5, 10))
    assert copy.deepcopy(allowed) == pickle.loads(pickle.dumps(allowed)) == allowed
    for name in ("uids", "gids", "_overflow_uid"):
        with pytest.raises(FrozenInstanceError):
            setattr(allowed, name, frozenset({0}))
