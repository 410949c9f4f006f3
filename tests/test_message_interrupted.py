"""A Message, if signal handlers raise twice: here sys.setprofile() raises."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys

from peers import needs_cpython

from peercred import messages

pytestmark = needs_cpython("it interrupts by sys.setprofile()")


class Interrupted(BaseException):
    """What the handler raises."""


def interrupt(moment):
    """Raise at this event of the package, counted from 0."""
    left = iter(range(moment))

    def profile(frame, event, _):
        # What is returned has no owner for one step, the return itself.
        returned = event == "return" and frame.f_code is messages.Message.detach_fds.__code__
        ours = frame.f_globals["__name__"].startswith("peercred.")
        if ours and not returned and next(left, None) is None:
            sys.setprofile(None)
            raise Interrupted

    sys.setprofile(profile)


def test_detached_and_dropped(datagrams, monkeypatch):
    """Interrupted when it hands over, and again when dropped, it closes."""
    receiver, sender = datagrams
    monkeypatch.setattr(sys, "unraisablehook", lambda _: seen.append(moment))
    seen = []
    for moment in itertools.count():
        socket.send_fds(sender, [b"x"], [0])
        message = messages.receive(receiver, 10, max_fds=1)
        [fd] = message.fds
        interrupt(moment)
        with contextlib.suppress(Interrupted):
            message.detach_fds()
            sys.setprofile(None)
            os.close(fd)
            break
        interrupt(0)
        del message
        sys.setprofile(None)
        assert not os.path.exists(f"/proc/self/fd/{fd}")
    assert seen == [*range(moment)]
    assert moment > 1
