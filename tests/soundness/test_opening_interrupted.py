"""Opening a descriptor while signal handlers raise: here sys.setprofile()."""

from __future__ import annotations

import errno
import itertools
import os
import sys

import pytest
from interrupting import Interrupted, ours
from peers import call, fill_table, is_open, needs_cpython, needs_pidfd
from questions import OPENING

pytestmark = [
    needs_pidfd,
    needs_cpython("it interrupts by sys.setprofile()"),
    pytest.mark.parametrize("function", [question.function for question in OPENING]),
]


def raise_when(condition):
    """Raise at the first event of sys.setprofile() that is so, and no more."""

    def profile(frame, event, _):
        if condition(frame, event):
            sys.setprofile(None)
            raise Interrupted

    sys.setprofile(profile)


def test_number_nought(pair, function):
    """A pidfd of 0 is closed, because the caller does not have it yet."""

    def interrupted():
        os.close(0)
        raise_when(lambda frame, event: event == "return" and is_open(0))
        with pytest.raises(Interrupted):
            function(pair[0])
        return is_open(0)

    assert call(interrupted) is False


def test_no_number(pair, function):
    """If there is no pidfd, nothing else is closed in its place."""

    def interrupted():
        fill_table()
        for number in itertools.count(1):
            moments = iter(range(number))
            raise_when(lambda frame, event: ours(frame) and event == "c_return" and next(moments, None) is None)  # noqa: B023
            try:
                function(pair[0])
            except Interrupted:
                continue
            except OSError as error:
                sys.setprofile(None)
                return number, error.errno
        raise AssertionError

    number, error = call(interrupted)
    assert number > 1
    assert error == errno.EMFILE
