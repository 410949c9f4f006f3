"""AllowList: lets in whom it lists and no one else, of real peers; and refuses a bad list at once."""

from __future__ import annotations

import copy
import enum
import errno
import grp
import os
import pickle
import pwd
import re
import resource
import sys
import threading
from collections import Counter
from pathlib import Path
from unittest.mock import MagicMock, Mock

import pytest
from peers import (
    CLONE_NEWUSER,
    Child,
    become,
    bind_mount,
    call,
    connect,
    in_pid_namespace,
    needs_namespaces,
    needs_root,
    outcome,
    unshare,
)

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
@pytest.mark.parametrize("count", [64, 65, 65536])
def test_peer_in_many_groups(peer, count):
    """The last of its groups counts as the first does, however many there are."""
    groups = range(3_000_000_000, 3_000_000_000 + count)
    assert peer(AllowList(gids={groups[-1]}), groups=groups) == "in"
    assert peer(AllowList(gids={groups[-1] + 1}), groups=groups) == REFUSED


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
    with pytest.raises(ValueError, match=r"is the overflow (user|group) id, .* without a mapping"):
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
        with pytest.raises(ValueError, match="overflow user id"):
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
def test_not_an_iterable(name, ids):
    """Neither one id or name, nor bytes, which would be iterable."""
    with pytest.raises(TypeError, match=rf"^{name} must be an iterable, such as "):
        AllowList(**{name: ids})


@pytest.mark.parametrize("id_", [True, False, b"0", None, 0.0, 1000.0, (0,), Mock(spec=int), MagicMock(spec=int)])
@pytest.mark.parametrize("name", ["uids", "gids"])
def test_not_an_id(name, id_):
    """True is not 1, bytes are no name, and a mock is no int whatever it calls itself."""
    with pytest.raises(TypeError, match=r"^a (user|group) must be an int or a name, not "):
        AllowList(**{name: [0, id_]})


@pytest.mark.parametrize("ids", [[-1], [0, 2**32 - 1], [2**32], [2**64], range(-1, 5), range(5, -2, -1), range(2**32)])
@pytest.mark.parametrize("name", ["uids", "gids"])
def test_ids_are_in_bounds(name, ids):
    """From 0 to 4294967294; of a range, both ends."""
    with pytest.raises(ValueError, match=r"^-?\d+ is not a (user|group) id: those are from 0 to 4294967294$"):
        AllowList(**{name: ids})


def test_names_are_looked_up():
    """A name stands for the number that the system's databases give, and the list shows the number."""
    allowed = AllowList(uids=["daemon", 0, "root"], gids=(name for name in ["daemon", "root"]))
    assert allowed.uids == {0, pwd.getpwnam("daemon").pw_uid}
    assert allowed.gids == {0, grp.getgrnam("daemon").gr_gid}
    assert "daemon" not in repr(allowed)
    assert allowed == AllowList(uids=allowed.uids, gids=allowed.gids)


@needs_root
def test_peer_is_let_in_by_name(peer):
    """By a user's name, and by the name of a supplementary group."""
    daemon = pwd.getpwnam("daemon").pw_uid
    adm = grp.getgrnam("adm").gr_gid
    assert peer(AllowList(uids={"daemon"}), uid=daemon) == "in"
    assert peer(AllowList(uids={"daemon"}), uid=daemon + 1000) == REFUSED
    assert peer(AllowList(gids={"adm"}), groups=(27, adm)) == "in"
    assert peer(AllowList(uids={"root"}, gids={"adm"}), groups=(27,)) == REFUSED


@pytest.mark.parametrize("name", ["", " root", "no such name", "-1", "+0", "0x0", "a\0b", "\udcff", "a\ud800", "r\n"])
@pytest.mark.parametrize("kind", ["user", "group"])
def test_unknown_name(kind, name):
    """It fails when the list is made, and the message shows it."""
    with pytest.raises(ValueError, match=f"^no {kind} has the name {re.escape(repr(name))}$"):
        AllowList(**{f"{kind[0]}ids": {0, name}})


@pytest.mark.parametrize("name", ["0", "1000", "007", "9" * 5000, "\u0661"])
@pytest.mark.parametrize("kind", ["user", "group"])
def test_number_in_quotes(kind, name):
    """It is no name, and the message says what to write."""
    with pytest.raises(ValueError, match=rf"is a {kind} id in quotes: write it without them"):
        AllowList(**{f"{kind[0]}ids": {name}})


def test_overflow_user_cannot_be_listed_by_name():
    """`nobody` has the overflow id."""
    try:
        nobody = pwd.getpwuid(OVERFLOW["uid"]).pw_name
    except KeyError:
        return  # nor is there a name for it
    with pytest.raises(ValueError, match="overflow user id"):
        AllowList(uids={nobody})


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


def test_only_a_range_stays_one():
    """What calls itself a range is read as any other iterable: a mock of one listed uid 0."""
    mock = MagicMock(spec=range)
    mock.__iter__.return_value = iter([1000])
    mock.__contains__.return_value = True
    allowed = AllowList(uids=mock)
    assert allowed.uids == {1000}
    assert not allowed.permits(Cred(1, 0, 0))


PERMITTED = [
    (AllowList(), Cred(1, 0, 0), (), False),
    (AllowList(uids={0}), None, (), False),
    (AllowList(uids={0}), Cred(1, 0, 5), (), True),
    (AllowList(uids={0}), Cred(None, 0, 5), (), True),
    (AllowList(uids={0}), Cred(1, 5, 0), (0,), False),
    (AllowList(gids={0}), Cred(1, 0, 5), (), False),
    (AllowList(gids={5}), Cred(1, 0, 5), (), True),
    (AllowList(gids={5}), Cred(1, 5, 0), (4, 5), True),
    (AllowList(gids={5}), Cred(1, 5, 0), iter([4, 5]), True),
    (AllowList(gids={5}), Cred(1, 5, 0), {4, 6}, False),
    (AllowList(gids=range(5, 10)), Cred(1, 5, 0), [9], True),
    (AllowList(uids=range(2**32 - 1)), Cred(1, OVERFLOW["uid"], 0), (), False),
    (AllowList(gids=range(2**32 - 1)), Cred(1, 0, OVERFLOW["gid"]), [OVERFLOW["gid"]], False),
    (AllowList(gids=range(2**32 - 1)), Cred(1, 0, OVERFLOW["gid"]), [OVERFLOW["gid"], 4], True),
]


@pytest.mark.parametrize(("allowed", "cred", "groups", "expected"), PERMITTED)
def test_permits(allowed, cred, groups, expected):
    """The decision alone: by uid, primary gid or any of the groups; None is nobody, and an overflow id too."""
    assert allowed.permits(cred, groups) is expected


@pytest.mark.parametrize("cred", ["root", 0, (1, 0, 0), True, Mock(uid=0, gid=0)])
def test_permits_a_cred_only(cred):
    """Anything else that might have a uid is a mistake."""
    with pytest.raises(TypeError, match=r"^cred must be a peercred\.Cred or None"):
        AllowList(uids={0}, gids={0}).permits(cred)


@pytest.mark.parametrize("groups", ["docker", b"\x05", 5, None, ["5"], [5.0], [None]])
def test_permits_takes_groups_as_ints(groups):
    """Bytes would be iterable, and a float equal to an int."""
    with pytest.raises(TypeError):
        AllowList(gids={5}).permits(Cred(1, 0, 0), groups)


@needs_root
def test_full_table(server):
    """A list with groups needs a descriptor for the moment: without one, nobody is let in. One with uids needs none."""
    with connect(server.getsockname()), server.accept()[0] as conn:

        def full():
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            by_uid, by_group = AllowList(uids={0}), AllowList(uids={0}, gids={0})
            while isinstance(outcome(os.dup, 0), int):
                pass
            return outcome(by_uid.require, conn).uid, outcome(by_group.require, conn)

        assert call(full) == (0, (OSError, errno.EMFILE))


@needs_root
def test_one_connection_behind_the_number(server):
    """While another thread puts one connection after the other behind a descriptor, no answer mixes two.

    A member of group 4 and a stranger, both connected. The stranger must never be let in by the member's group.
    """
    conns = {}
    for uid, groups in ((1001, (4,)), (1002, (5,))):
        call(
            lambda uid=uid, groups=groups: (
                become(uid=uid, gid=uid, groups=groups) or connect(server.getsockname()).close()
            )
        )
        conns[uid], _ = server.accept()
    allowed = AllowList(gids={4})
    number = os.dup(conns[1001].fileno())
    done = threading.Event()

    def swap():
        while not done.is_set():
            for conn in conns.values():
                os.dup2(conn.fileno(), number)

    thread = threading.Thread(target=swap)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        answers = Counter()
        while not all(answers[kind] > 10_000 for kind in ("in", "refused")):
            answer = outcome(allowed.require, number)
            answers["in" if answer == peercred.read(conns[1001]) else "refused" if answer == REFUSED else answer] += 1
    finally:
        sys.setswitchinterval(interval)
        done.set()
        thread.join()
        os.close(number)
        for conn in conns.values():
            conn.close()
    assert answers.keys() == {"in", "refused"}


def test_is_a_value():
    """Comparable, hashable and immutable; its repr is fit for a log line."""
    allowed = AllowList(uids=[1000, 0], gids=range(5, 10))
    assert repr(allowed) == "AllowList(uids={0, 1000}, gids=range(5, 10))"
    assert eval(repr(allowed)) == allowed
    assert repr(AllowList()) == "AllowList(uids=(), gids=())"
    assert hash(allowed) == hash(AllowList(uids={0, 1000}, gids=range(5, 10)))
    assert allowed != AllowList(uids={0, 1000})
    assert allowed != (frozenset({0, 1000}), range(5, 10))
    assert AllowList(uids={1}) != AllowList(gids={1})
    for name in ("uids", "gids", "_overflow_uid", "other"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(allowed, name, frozenset({0}))
        with pytest.raises(AttributeError, match="immutable"):
            delattr(allowed, name)
    assert not hasattr(allowed, "__dict__")


COPIES = [copy.copy, copy.deepcopy, lambda allowed: pickle.loads(pickle.dumps(allowed))]


@pytest.mark.parametrize("make", COPIES)
def test_copies_are_equal(make):
    """By copy, deepcopy and pickle."""
    allowed = AllowList(uids=[1000, 0], gids=range(5, 10))
    assert make(allowed) == allowed
    assert repr(make(allowed)) == repr(allowed)


@needs_namespaces
@pytest.mark.parametrize("make", COPIES)
def test_copies_are_checked_anew(make, tmp_path):
    """Where another id is the overflow id, a copy that lists it cannot be made. (Here, by this namespace's files.)"""
    allowed = AllowList(uids={1000}, gids=range(5, 10))
    for kind, number in (("uid", "1000\n"), ("gid", "7\n")):
        (tmp_path / kind).write_text(number)

    def elsewhere():
        bind_mount(tmp_path / "gid", Path("/proc/sys/kernel/overflowgid"))
        made = make(allowed)
        seven = [each.permits(Cred(1, 0, 7)) for each in (allowed, made)]
        bind_mount(tmp_path / "uid", Path("/proc/sys/kernel/overflowuid"))
        with pytest.raises(ValueError, match="1000 is the overflow user id"):
            make(allowed)
        return seven

    assert in_pid_namespace(elsewhere) == [True, False]
