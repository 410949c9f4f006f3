"""A Message, if a signal handler raises: here sys.setprofile() raises."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys

import pytest
from interrupting import HANDS_OVER, Interrupted, ours, raise_when
from peers import is_open, needs_cpython, needs_pidfd

from peercred import messages

pytestmark = needs_cpython("it interrupts by sys.setprofile()")


def interrupt(moment):
    """Raise at this event of the package, counted from 0."""
    left = iter(range(moment))

    def is_the_moment(frame, event):
        # What is returned has no owner for one step, the return itself.
        returned = event == "return" and frame.f_code in HANDS_OVER
        return ours(frame) and not returned and next(left, None) is None

    raise_when(is_the_moment)


@pytest.mark.parametrize("detach", ["detach_fds", pytest.param("detach_pidfd", marks=needs_pidfd)])
def test_interrupted_when_it_hands_over(datagrams, detach):
    """It still owns its descriptor then, and closes it."""
    receiver, sender = datagrams
    messages.enable(receiver, pidfd=detach == "detach_pidfd")
    for moment in itertools.count():
        socket.send_fds(sender, [b"x"], [0] if detach == "detach_fds" else [])
        message = messages.receive(receiver, 10, max_fds=1)
        [fd] = message.fds or [message.pidfd]
        interrupt(moment)
        with contextlib.suppress(Interrupted):
            getattr(message, detach)()
            sys.setprofile(None)
            os.close(fd)
            break
        message.close()
        assert not is_open(fd)
    assert moment > 1
