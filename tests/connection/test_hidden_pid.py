"""The kernel reports pid 0 for a peer outside the reader's PID namespace."""

from __future__ import annotations

import os

import pytest
from peers import in_pid_namespace, needs_namespaces, outcome

import peercred


@needs_namespaces
@pytest.mark.parametrize("name", ["read_groups", "read_label"])
def test_same_answer_or_error(pair, name):
    """Groups and labels, or the reason why there are none, do not change."""
    function = getattr(peercred, name)

    def inside():
        return peercred.read(pair[0]).pid, outcome(function, pair[0])

    assert in_pid_namespace(inside) == (None, outcome(function, pair[0]))


@needs_namespaces
@pytest.mark.parametrize("gids", [[], range(2**32 - 1)], ids=["by uid", "by uid or gid"])
def test_admitted_without_a_pid(pair, gids):
    """An AllowList admits such a peer, and its pid is None, not 0."""
    allowed = peercred.AllowList(uids={os.geteuid()}, gids=gids)

    def inside():
        return allowed.require(pair[0])

    assert in_pid_namespace(inside) == peercred.Cred(None, os.geteuid(), os.getegid())
