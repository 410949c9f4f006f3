"""AllowList(): what can be listed. A bad list fails when it is made."""

from __future__ import annotations

import enum
import grp
import itertools
import pwd
import re
from unittest.mock import MagicMock, Mock

import pytest
from peers import Everyone, overflow_ids

from peercred import AllowList, Cred

OVERFLOW = overflow_ids()


@pytest.mark.parametrize("name", ["uids", "gids"])
def test_overflow_ids_cannot_be_listed(name):
    """To list an overflow id is an error that says why."""
    with pytest.raises(ValueError, match=r"is the overflow (user|group) id, .* without a mapping"):
        AllowList(**{name: [0, getattr(OVERFLOW, name[:-1])]})


@pytest.mark.parametrize("ids", [1000, None, 1.0, "", "0", "root", b"", b"0", bytearray(b"0"), memoryview(b"0")])
@pytest.mark.parametrize("name", ["uids", "gids"])
def test_not_an_iterable(name, ids):
    """One id, one name and bytes are refused as lists."""
    with pytest.raises(TypeError, match=rf"^{name} must be an iterable of ints and names, not "):
        AllowList(**{name: ids})


@pytest.mark.parametrize("id_", [True, False, b"0", None, 0.0, 1000.0, (0,), Mock(spec=int), MagicMock(spec=int)])
@pytest.mark.parametrize("name", ["uids", "gids"])
def test_not_an_id(name, id_):
    """True is not 1, bytes are no name, and a mock is no int."""
    with pytest.raises(TypeError, match=r"^a (user|group) id must be an int or a name, not "):
        AllowList(**{name: [0, id_]})


@pytest.mark.parametrize("ids", [[-1], [0, 2**32 - 1], [2**32], [2**64], range(-1, 5), range(5, -2, -1), range(2**32)])
@pytest.mark.parametrize("name", ["uids", "gids"])
def test_ids_are_in_bounds(name, ids):
    """An id is from 0 to 4294967294; both ends of a range are checked."""
    with pytest.raises(ValueError, match=r"^a (user|group) id must be from 0 to 4294967294, not -?\d+$"):
        AllowList(**{name: ids})


def test_names_are_looked_up():
    """A name stands for its number in the system's databases.

    The list shows the number.
    """
    allowed = AllowList(uids=["daemon", 0, "root"], gids=(name for name in ["daemon", "root"]))
    assert allowed.uids == {0, pwd.getpwnam("daemon").pw_uid}
    assert allowed.gids == {0, grp.getgrnam("daemon").gr_gid}
    assert "daemon" not in repr(allowed)
    assert allowed == AllowList(uids=allowed.uids, gids=allowed.gids)


@pytest.mark.parametrize("name", ["", " root", "no such name", "-1", "+0", "0x0", "a\0b", "\udcff", "a\ud800", "r\n"])
@pytest.mark.parametrize("kind", ["user", "group"])
def test_unknown_name(kind, name):
    """An unknown name fails when the list is made, and is shown."""
    with pytest.raises(ValueError, match=f"^there is no {kind} named {re.escape(repr(name))}$"):
        AllowList(**{f"{kind[0]}ids": {0, name}})


@pytest.mark.parametrize("name", ["0", "1000", "007", "9" * 5000, "\u0661"])
@pytest.mark.parametrize("kind", ["user", "group"])
def test_number_in_quotes(kind, name):
    """A number in quotes is no name, and the error says what to write."""
    with pytest.raises(ValueError, match=rf"is a {kind} id in quotes: remove the quotes"):
        AllowList(**{f"{kind[0]}ids": {name}})


def test_overflow_user_cannot_be_listed_by_name():
    """`nobody`, which has the overflow id, cannot be listed."""
    try:
        nobody = pwd.getpwuid(OVERFLOW.uid).pw_name
    except KeyError:
        return  # nor is there a name for it
    with pytest.raises(ValueError, match="overflow user id"):
        AllowList(uids={nobody})


def test_any_iterable_is_read_once():
    """Generators, dictionaries and ints of other classes can be listed.

    A range stays one.
    """
    number = enum.IntEnum("Number", {"ROOT": 0})
    assert AllowList(uids=(n for n in (1, 2))) == AllowList(uids=[2, 1, 1]) == AllowList(uids={1: "a", 2: "b"})
    assert repr(AllowList(uids=[number.ROOT])) == "AllowList(uids={0}, gids=())"
    assert AllowList(uids=range(10**9)).uids == range(10**9)
    assert AllowList(gids=range(0)).gids == range(0)


def test_only_a_range_stays_one():
    """What only calls itself a range is read as any other iterable.

    A mock of one once listed uid 0.
    """
    mock = MagicMock(spec=range)
    mock.__iter__.return_value = iter([1000])
    mock.__contains__.return_value = True
    allowed = AllowList(uids=mock)
    assert allowed.uids == {1000}
    assert not allowed.permits(Cred(1, 0, 0))


@pytest.mark.parametrize("name", ["uids", "gids"])
@pytest.mark.parametrize("bad", [-1, "0", 1.0, OVERFLOW.uid, "no such name"])
def test_each_entry_is_checked_as_it_comes(name, bad):
    """The first bad entry ends the list: an endless iterable fills nothing."""
    taken = []

    def endless():
        for entry in itertools.chain([5, bad], itertools.count()):
            taken.append(entry)
            assert len(taken) < 10
            yield entry

    with pytest.raises((ValueError, TypeError)):
        AllowList(**{name: endless()})
    assert taken == [5, bad]


@pytest.mark.parametrize("name", ["uids", "gids"])
def test_numbers_of_other_classes(name):
    """A number of another class cannot decide who is let in."""
    allowed = AllowList(**{name: [Everyone(5)]})
    assert [type(number) for number in getattr(allowed, name)] == [int]
    assert not allowed.permits(Cred(1, 0, 0))
    assert allowed.permits(Cred(1, 5, 5))
