"""Who owns which descriptor, whatever a signal handler raises, and when.

A descriptor must be closed once: never leaked, and never closed a second time,
when its number may be another's. A signal handler may raise between any two
steps of Python code, so taking one out of a list and closing it must be one
step. Here it is: what `deque` and `starmap` do, they do in C.
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
    """Is called when it is dropped.

    A method would be Python code. If a signal handler raised in it, Python
    would drop the exception, and what is left to do. This is C alone.
    """

    __del__ = property(attrgetter("__call__"))


class Owned:
    """Open descriptors, until they are closed or handed over."""

    __slots__ = ("_closer", "_numbers", "_spans")

    _closer: Closer | None

    def __init__(self, fds: Sequence[int] = ()) -> None:
        self._numbers = fds
        # What is taken out of the iterator is forgotten. A negative errno in
        # the place of a descriptor owns nothing, and closerange() would take
        # it for a range that begins at 0.
        self._spans = iter([(fd, fd + 1) for fd in fds if fd >= 0])
        self._closer = None

    def keep(self) -> None:
        """Be the only owner.

        If this is dropped, close them, with a ResourceWarning.
        """
        if self._numbers:
            self._closer = Closer(deque, starmap(os.closerange, self._spans), 0)

    @property
    def fds(self) -> tuple[int, ...]:
        """Those that are still owned."""
        return tuple(self._numbers) if self._numbers and length_hint(self._spans) else ()

    def close(self) -> None:
        """Close them.

        Errors of close(2) are ignored: a stranger may have sent them.
        """
        deque(starmap(os.closerange, self._spans), maxlen=0)

    def forget(self) -> None:
        """Leave them to somebody else."""
        deque(self._spans, maxlen=0)

    def take_back(self, fds: Sequence[int]) -> None:
        """Own again what was forgotten, if it was."""
        self.forget()
        self._numbers = fds
        self._spans = iter([(fd, fd + 1) for fd in fds])
        self.keep()

    def __del__(self) -> None:
        # If a signal handler raises in here, Python drops the exception and
        # the warning with it. The closer, which is dropped next, still closes.
        # (There is none if a handler raised in the constructor.)
        if getattr(self, "_closer", None) is not None and (fds := self.fds):
            self.close()
            warnings.warn(f"unclosed descriptors of a peercred Message: {fds}", ResourceWarning, 2, source=self)


NOTHING = Owned()
