"""AllowList.permits(): the decision alone, without a connection."""

from __future__ import annotations

import re
from unittest.mock import Mock

import pytest
from peers import Everyone, overflow_ids

from peercred import AllowList, Cred

OVERFLOW = overflow_ids()

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
    (AllowList(uids=range(2**32 - 1)), Cred(1, OVERFLOW.uid, 0), (), False),
    (AllowList(gids=range(2**32 - 1)), Cred(1, 0, OVERFLOW.gid), [OVERFLOW.gid], False),
    (AllowList(gids=range(2**32 - 1)), Cred(1, 0, OVERFLOW.gid), [OVERFLOW.gid, 4], True),
]


@pytest.mark.parametrize(("allowed", "cred", "groups", "expected"), PERMITTED)
def test_permits(allowed, cred, groups, expected):
    """A uid or gid that is listed decides, but never an overflow id."""
    assert allowed.permits(cred, groups) is expected


@pytest.mark.parametrize("cred", ["root", 0, (1, 0, 0), True, Mock(uid=0, gid=0)])
def test_permits_a_cred_only(cred):
    """permits() refuses whatever else has a uid, by a TypeError."""
    with pytest.raises(TypeError, match=r"^cred must be a peercred\.Cred or None"):
        AllowList(uids={0}, gids={0}).permits(cred)


@pytest.mark.parametrize("groups", ["docker", b"\x05", 5, None, ["5"], [5.0], [None]])
@pytest.mark.parametrize("cred", [Cred(1, 0, 0), Cred(1, 5, 5), None], ids=["undecided", "decided", "None"])
def test_permits_takes_groups_as_ints(cred, groups):
    """permits() refuses groups that are text, bytes or floats.

    It does so even where they do not decide.
    """
    with pytest.raises(TypeError):
        AllowList(uids={5}, gids={5}).permits(cred, groups)


class One:
    """An integer that is no int, as NumPy's are."""

    def __index__(self):
        return 1


@pytest.mark.parametrize("group", [True, False, One()], ids=["True", "False", "__index__"])
@pytest.mark.parametrize("before", [(), (4, 5)], ids=["alone", "after good ones"])
def test_permits_takes_no_bool_as_a_group(group, before):
    """True is not group 1, as it is no uid of a Cred or a list either."""
    with pytest.raises(TypeError, match=f"not {re.escape(repr(group))}$"):
        AllowList(gids={0, 1}).permits(Cred(1, 1000, 1000), [*before, group])


def test_group_cannot_decide_what_it_is_equal_to():
    """A group of another class counts as the number that it is."""
    allowed = AllowList(gids={0})
    assert not allowed.permits(Cred(1, 1000, 1000), [Everyone(7)])
    assert allowed.permits(Cred(1, 1000, 1000), [7, Everyone(0)])


def test_error_names_the_argument():
    """The error says that it is the groups that are wrong, and how."""
    with pytest.raises(TypeError, match=r"^groups must be an iterable of ints, not 5$"):
        AllowList(gids={5}).permits(Cred(1, 0, 0), 5)
