"""AllowList.require(): which real peers are let in."""

from __future__ import annotations

import errno
import grp
import os
import pwd

import pytest
from peers import (
    CLONE_NEWUSER,
    call,
    connect,
    fill_table,
    needs_namespaces,
    needs_root,
    outcome,
    overflow_ids,
    unshare,
)

import peercred
from peercred import AllowList, Cred

REFUSED = (peercred.NotAllowedError, errno.EACCES)
OVERFLOW = overflow_ids()


@pytest.fixture
def peer(peer_as):
    """A function that says what a list says of a process with these ids."""

    def peer(allowed, uid=1001, gid=2001, groups=()):
        with peer_as(uid, gid, groups) as (child, conn):
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
    """A peer gets in by its uid, its primary gid or any supplementary group.

    A uid never counts as a gid, or the other way round.
    """
    assert peer(allowed, uid=1001, gid=2001, groups=(4, 27)) == expected


@needs_root
@pytest.mark.parametrize("count", [64, 65, 65536])
def test_peer_in_many_groups(peer, count):
    """The last of a peer's groups counts, however many there are."""
    groups = range(3_000_000_000, 3_000_000_000 + count)
    assert peer(AllowList(gids={groups[-1]}), groups=groups) == "in"
    assert peer(AllowList(gids={groups[-1] + 1}), groups=groups) == REFUSED


@needs_root
def test_effective_ids_count(peer):
    """If a process has three different ids, the effective one decides."""
    ids = {"uid": (1001, 1002, 1003), "gid": (2001, 2002, 2003)}
    assert peer(AllowList(uids={1002}), **ids) == "in"
    assert peer(AllowList(gids={2002}), **ids) == "in"
    assert peer(AllowList(uids={1001, 1003}, gids={2001, 2003}), **ids) == REFUSED


@needs_root
def test_root_needs_a_zero(peer):
    """Root gets in only if it is listed."""
    assert peer(AllowList(uids={1000}, gids={27}), uid=0, gid=0) == REFUSED
    assert peer(AllowList(uids={0}), uid=0, gid=0) == "in"


@needs_root
def test_large_ids(peer):
    """Ids above 2^31 can be listed, up to the highest that there is."""
    assert peer(AllowList(uids={3_000_000_000}), uid=3_000_000_000) == "in"
    assert peer(AllowList(gids=range(2**31, 2**32 - 1)), gid=2**32 - 2) == "in"
    assert peer(AllowList(uids={2**32 - 2}), uid=3_000_000_000) == REFUSED


@needs_root
def test_overflow_ids_never_match(peer):
    """A peer with an overflow id is refused, even if a range holds that id.

    It may be anyone without a mapping.
    """
    everyone = range(2**32 - 1)
    assert peer(AllowList(uids=everyone), uid=OVERFLOW.uid) == REFUSED
    assert peer(AllowList(gids=everyone), gid=OVERFLOW.gid) == REFUSED
    assert peer(AllowList(gids=everyone), gid=OVERFLOW.gid, groups=(OVERFLOW.gid,)) == REFUSED
    assert peer(AllowList(gids=everyone), gid=OVERFLOW.gid, groups=(OVERFLOW.gid, 27)) == "in"
    assert peer(AllowList(uids=everyone), uid=OVERFLOW.uid - 1) == "in"


@needs_namespaces
def test_server_without_a_mapping_lets_nobody_in(peer_as):
    """A server without a mapping does not take such a client for itself.

    Both read as 65534, which `uids={os.geteuid()}` must not match.
    """

    def unmapped():
        before = AllowList(uids={os.geteuid()}, gids={os.getegid()})
        everyone = AllowList(uids=range(2**32 - 1), gids=range(2**32 - 1))
        unshare(CLONE_NEWUSER)
        assert peercred.read(conn).uid == os.geteuid() == OVERFLOW.uid  # what the naive check compares
        with pytest.raises(ValueError, match="overflow user id"):
            AllowList(uids={os.geteuid()})
        return outcome(before.require, conn), outcome(everyone.require, conn)

    with peer_as(1001) as (_, conn):
        assert call(unmapped) == (REFUSED, REFUSED)


def test_errors_of_the_reads_come_out(server):
    """A peer that cannot be identified is refused by read()'s own error."""
    everyone = AllowList(uids=range(2**32 - 1))
    assert outcome(everyone.require, server) == (peercred.NoPeerError, errno.ENOTCONN)
    assert outcome(everyone.require, -1) == (OSError, errno.EBADF)
    with pytest.raises(TypeError):
        everyone.require(None)


@needs_root
def test_peer_is_let_in_by_name(peer):
    """A peer gets in by its user's name and by a supplementary group's."""
    daemon = pwd.getpwnam("daemon").pw_uid
    adm = grp.getgrnam("adm").gr_gid
    assert peer(AllowList(uids={"daemon"}), uid=daemon) == "in"
    assert peer(AllowList(uids={"daemon"}), uid=daemon + 1000) == REFUSED
    assert peer(AllowList(gids={"adm"}), groups=(27, adm)) == "in"
    assert peer(AllowList(uids={"root"}, gids={"adm"}), groups=(27,)) == REFUSED


def test_later_changes_do_not_count(pair):
    """A list stays as it was, if what it was made of changes."""
    uids = {os.geteuid() + 1}
    allowed = AllowList(uids=uids)
    uids.add(os.geteuid())
    assert outcome(allowed.require, pair[0]) == REFUSED


@needs_root
def test_full_table(server):
    """In a full table of descriptors, a list with groups refuses.

    A list of uids alone still works.
    """
    with connect(server.getsockname()), server.accept()[0] as conn:

        def full():
            by_uid, by_group = AllowList(uids={0}), AllowList(uids={0}, gids={0})
            fill_table()
            return outcome(by_uid.require, conn).uid, outcome(by_group.require, conn)

        assert call(full) == (0, (OSError, errno.EMFILE))
