"""An AllowList is a value: comparable, immutable, and copied with its
checks.
"""

from __future__ import annotations

import pytest
from faked import SHIM
from peers import COPIES
from raw import creds

from peercred import AllowList


def test_is_a_value():
    """An AllowList is comparable, hashable and immutable.

    Its repr suits a log line.
    """
    allowed = AllowList(uids=[1000, 0], gids=range(5, 10))
    assert repr(allowed) == "AllowList(uids={0, 1000}, gids=range(5, 10))"
    assert eval(repr(allowed)) == allowed
    assert repr(AllowList()) == "AllowList(uids=(), gids=())"
    assert hash(allowed) == hash(AllowList(uids={0, 1000}, gids=range(5, 10)))
    assert allowed != AllowList(uids={0, 1000})
    assert allowed != (frozenset({0, 1000}), range(5, 10))
    assert AllowList(uids={1}) != AllowList(gids={1})
    for name in ("uids", "gids", "_overflow_uid", "other"):
        with pytest.raises(AttributeError, match="cannot assign to field"):
            setattr(allowed, name, frozenset({0}))
        with pytest.raises(AttributeError, match="cannot delete field"):
            delattr(allowed, name)
    assert not hasattr(allowed, "__dict__")


@pytest.mark.parametrize("make", COPIES)
def test_copies_are_equal(make):
    """A copy by copy, deepcopy or pickle is equal."""
    allowed = AllowList(uids=[1000, 0], gids=range(5, 10))
    assert make(allowed) == allowed
    assert repr(make(allowed)) == repr(allowed)


PROGRAM = """
import copy, os, pickle
from peercred import AllowList, Cred
COPIES = copy.copy, copy.deepcopy, lambda allowed: pickle.loads(pickle.dumps(allowed))
make, allowed = COPIES[int(os.environ["WHICH"])], AllowList(uids={1000}, gids=range(5, 10))
os.environ["FAKE_CONTROL"] = os.environ["USER_SEVEN"]
print(*(each.permits(Cred(1, 0, 7)) for each in (allowed, make(allowed))))
os.environ["FAKE_CONTROL"] = os.environ["USER_THOUSAND"]
try: make(allowed)
except ValueError as error: print(error)
"""


@pytest.mark.parametrize("number", range(len(COPIES)))
def test_copies_are_checked_anew(preloaded, number):
    """A copy that lists what is an overflow id by now cannot be made.

    Root can change these ids. (Here, a preloaded library does.)
    """
    users = {"USER_SEVEN": creds(0, 65533, 7).hex(), "USER_THOUSAND": creds(0, 1000, 7).hex()}
    said = preloaded(SHIM, PROGRAM, WHICH=number, **users).splitlines()
    assert said[0] == "True False"
    assert said[1].startswith("1000 is the overflow user id")
