"""NotAllowedError says who was refused, and is a value like any other error."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys

import pytest
from peers import COPIES, needs_root

from peercred import AllowList, Cred, NotAllowedError


@needs_root
@pytest.mark.parametrize("ids", [{"uids": {0}}, {"gids": {4}}], ids=str)
def test_cred_of_the_refused_peer(peer_as, ids):
    """The error holds the peer that the answer was about."""
    with peer_as(1001, 2001) as (child, conn), pytest.raises(NotAllowedError) as caught:
        AllowList(**ids).require(conn)
    assert caught.value.cred == Cred(child.pid, 1001, 2001)
    assert caught.value.errno == errno.EACCES
    assert str(caught.value) == f"[Errno 13] not on the allow-list: pid {child.pid}, uid 1001, gid 2001"


def test_is_caught_by_its_bases(pair):
    """It is a PermissionError, so `except OSError` refuses too."""
    with pytest.raises(PermissionError) as caught:
        AllowList().require(pair[0])
    assert type(caught.value) is NotAllowedError
    assert caught.value.cred.uid == os.geteuid()


@pytest.mark.parametrize("make", COPIES)
@pytest.mark.parametrize("pid", [4321, None])
def test_copies(make, pid):
    """A copy has the same words and `cred`, and what has been added."""
    error = NotAllowedError(Cred(pid, 1000, 1001))
    error.attempt = 3
    made = make(error)
    assert type(made) is NotAllowedError
    assert (made.errno, str(made), made.cred, made.attempt) == (errno.EACCES, str(error), error.cred, 3)


def test_pickles_name_the_public_module():
    """A pickle can be read by a version whose modules have other names."""
    data = pickle.dumps((NotAllowedError(Cred(1, 2, 3)), Cred(1, 2, 3), AllowList(uids={2})))
    assert b"peercred" in data
    assert b"peercred._" not in data


def test_traceback_names_the_public_class():
    """An error that nobody catches says what to import to catch it."""
    program = "import peercred, socket; peercred.AllowList().require(socket.socketpair()[0])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1].startswith("peercred.NotAllowedError: [Errno 13] not on the allow-list")
