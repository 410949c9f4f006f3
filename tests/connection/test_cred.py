"""Cred is a value: frozen, comparable and hashable.

It works with copy, pickle and match.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle

import pytest

import peercred
from peercred import Cred

CRED = Cred(pid=2002, uid=1000, gid=1001)


@pytest.fixture(params=["constructed", "read"])
def cred(request, pair):
    """A Cred that its constructor made, and one that read() made."""
    return CRED if request.param == "constructed" else peercred.read(pair[0])


def test_fields():
    """A Cred has three fields, in the order of struct ucred."""
    assert (CRED.pid, CRED.uid, CRED.gid) == (2002, 1000, 1001)
    assert dataclasses.astuple(CRED) == (2002, 1000, 1001)


def test_repr():
    """A Cred's repr is as in the README, and evaluates to it."""
    assert repr(CRED) == "Cred(pid=2002, uid=1000, gid=1001)"
    assert eval(repr(CRED)) == CRED


@pytest.mark.parametrize(
    "fields", [(0, 0, 0), (-1, 0, 0), (2**31, 0, 0), (1, -1, 0), (1, 2**32 - 1, 0), (1, 0, -1), (1, 0, 2**32 - 1)]
)
def test_numbers_that_cannot_be(fields):
    """A pid of 0 and ids of -1 are nobody's, so there is no Cred of them."""
    with pytest.raises(ValueError, match=r"^(pid|uid|gid) must be from \d to \d+, not -?\d+$"):
        Cred(*fields)


@pytest.mark.parametrize("fields", [(True, 0, 0), (1, False, 0), (1, 0, "0"), (1.0, 0, 0), (1, None, 0), ("1", 0, 0)])
def test_other_types(fields):
    """A bool, a float and text are refused as a number of a process or user."""
    with pytest.raises(TypeError, match=r"^(pid|uid|gid) must be an int( or None)?, not "):
        Cred(*fields)


@pytest.mark.parametrize("fields", [(1, 0, 0), (2**31 - 1, 2**32 - 2, 2**32 - 2), (None, 0, 0)])
def test_numbers_that_can_be(fields):
    """A Cred takes the bounds, and None as a pid that cannot be seen."""
    assert dataclasses.astuple(Cred(*fields)) == fields


@pytest.mark.parametrize("name", ["pid", "uid", "gid", "other"])
def test_frozen(cred, name):
    """Nothing of a Cred can be changed, added or deleted."""
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        setattr(cred, name, 0)
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        delattr(cred, name)


def test_slotted(cred):
    """A Cred has no instance dictionary."""
    assert not hasattr(cred, "__dict__")


def test_read_makes_what_the_constructor_makes(pair):
    """A Cred from read() is the same as one from the constructor."""
    cred = peercred.read(pair[0])
    made = Cred(os.getpid(), os.geteuid(), os.getegid())
    assert type(cred) is Cred
    assert (cred, hash(cred), repr(cred)) == (made, hash(made), repr(made))
    assert {cred: 1}[made] == 1


def test_comparable():
    """A Cred is equal only to a Cred with the same three numbers."""
    assert Cred(2002, 1000, 1001) == CRED
    for other in (Cred(None, 1000, 1001), Cred(2002, 0, 1001), Cred(2002, 1000, 0), (2002, 1000, 1001)):
        assert other != CRED


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(cred, protocol):
    """A Cred comes back equal from pickle, by every protocol."""
    assert pickle.loads(pickle.dumps(cred, protocol)) == cred


def test_copy(cred):
    """copy, deepcopy and replace make equal Creds."""
    assert copy.copy(cred) == copy.deepcopy(cred) == cred
    assert dataclasses.replace(cred, pid=None) == Cred(None, cred.uid, cred.gid)


def test_pattern_matching(cred):
    """A Cred matches by position and by name."""
    match cred:
        case Cred(pid, uid=uid, gid=gid):
            assert (pid, uid, gid) == (cred.pid, cred.uid, cred.gid)
        case _:
            pytest.fail("no match")


def test_pickle_of_an_impossible_process():
    """A pickle that somebody made by hand is checked like any other Cred."""
    forged = pickle.dumps(CRED, 0).replace(b"I1000\n", b"I4294967295\n")
    assert forged != pickle.dumps(CRED, 0)
    with pytest.raises(ValueError, match="uid must be from 0 to 4294967294, not 4294967295"):
        pickle.loads(forged)


def test_subclasses_of_int_become_ints():
    """A subclass may compare as it likes, which an id must not."""

    class Number(int):
        pass

    cred = Cred(Number(1), Number(2), Number(3))
    assert [type(number) for number in dataclasses.astuple(cred)] == [int, int, int]
