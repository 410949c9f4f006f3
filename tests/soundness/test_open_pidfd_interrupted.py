"""open_pidfd() if a signal handler raises: here sys.setprofile() raises."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import sys

import pytest
from peers import call, needs_cpython, needs_pidfd, outcome

import peercred

pytestmark = [needs_pidfd, needs_cpython("it interrupts by sys.setprofile()")]


class Interrupted(BaseException):
    """What the handler raises."""


def raise_when(condition):
    """Raise at the first event for which the condition is true."""

    def profile(frame, event, _):
        if condition(frame, event):
            sys.setprofile(None)
            raise Interrupted

    sys.setprofile(profile)


def ours(frame):
    return frame.f_globals["__name__"].startswith("peercred.")


def is_open(fd):
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_number_nought(pair):
    """A pidfd of 0 is closed, because the caller does not have it yet."""

    def interrupted():
        os.close(0)
        raise_when(lambda frame, event: event == "return" and is_open(0))
        with pytest.raises(Interrupted):
            peercred.open_pidfd(pair[0])
        return is_open(0)

    assert call(interrupted) is False


def test_no_number(pair):
    """If there is no pidfd, nothing else is closed in its place."""

    def interrupted():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        while isinstance(outcome(os.dup, 0), int):
            pass
        for number in itertools.count(1):
            moments = iter(range(number))
            raise_when(lambda frame, event: ours(frame) and event == "c_return" and next(moments, None) is None)  # noqa: B023
            try:
                peercred.open_pidfd(pair[0])
            except Interrupted:
                continue
            except OSError as error:
                sys.setprofile(None)
                return number, error.errno
        raise AssertionError

    number, error = call(interrupted)
    assert number > 1
    assert error == errno.EMFILE
