"""An AllowList is a value: comparable, immutable, and copied with its
checks.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
from peers import bind_mount, in_pid_namespace, needs_namespaces

from peercred import AllowList, Cred


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


COPIES = [copy.copy, copy.deepcopy, lambda allowed: pickle.loads(pickle.dumps(allowed))]


@pytest.mark.parametrize("make", COPIES)
def test_copies_are_equal(make):
    """A copy by copy, deepcopy or pickle is equal."""
    allowed = AllowList(uids=[1000, 0], gids=range(5, 10))
    assert make(allowed) == allowed
    assert repr(make(allowed)) == repr(allowed)


@needs_namespaces
@pytest.mark.parametrize("make", COPIES)
def test_copies_are_checked_anew(make, tmp_path):
    """A copy that lists what is an overflow id by now cannot be made.

    (Here, by this namespace's files.)
    """
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
