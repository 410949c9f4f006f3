"""Descriptors are closed once, even if a signal handler raises.

A descriptor that is never closed is a leak. If it is closed twice, the second
close may hit another file that has taken the number. A signal handler can raise
between any two steps of Python code, so taking a descriptor off a list and
closing it must be one step. `deque` and `starmap` do both in C.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from functools import partial
from itertools import starmap
from operator import attrgetter, length_hint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Closer(partial[object]):
    """Calls itself when it is dropped, in C alone.

    If a signal handler raises in a `__del__` written in Python, the rest of
    that method is not run.
    """

    # A property, so that Python gets the method without running Python code.
    __del__ = property(attrgetter("__call__"))


class Owned:
    """Open descriptors, until they are closed or handed over."""

    __slots__ = ("_closer", "_numbers", "_spans")

    _closer: Closer

    def __init__(self, fds: Sequence[int] = ()) -> None:
        self._numbers = fds
        # What is still to be closed, as arguments of closerange(). Taking one
        # from the iterator and closing it is one step. Skip a negative errno
        # in the place of a descriptor: closerange() would start from 0.
        self._spans = iter([(fd, fd + 1) for fd in fds if fd >= 0])

    def keep(self) -> None:
        """From now on, close them if this object is dropped."""
        if self._numbers:
            self._closer = Closer(deque, starmap(os.closerange, self._spans), 0)

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that are still owned."""
        return tuple(self._numbers) if length_hint(self._spans) else ()

    def close(self) -> None:
        """Close them, ignoring errors of close(2).

        A stranger's file decides whether close(2) succeeds.
        """
        deque(starmap(os.closerange, self._spans), maxlen=0)

    def forget(self) -> None:
        """Leave them to another owner."""
        deque(self._spans, maxlen=0)

    def take_back(self, fds: Sequence[int]) -> None:
        """Own these descriptors again, after forget() was interrupted."""
        self.forget()
        Owned.__init__(self, fds)
        self.keep()

    def __del__(self) -> None:
        # If a signal handler raises here, the warning is lost, but the closer
        # is dropped next and closes. (There is no closer yet if a handler
        # raised in the constructor.)
        if getattr(self, "_closer", None) is not None and (fds := self.fds):
            self.close()
            warnings.warn(f"unclosed descriptors of a peercred Message: {fds}", ResourceWarning, 2, source=self)


NOTHING = Owned()
