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
from itertools import starmap
from operator import length_hint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Owned:
    """Open descriptors, until they are closed or handed over.

    If `warns` is set and any are left when this is dropped, they are closed
    with a ResourceWarning.
    """

    __slots__ = ("_numbers", "_spans", "warns")

    def own(self, fds: Sequence[int] = (), warns: bool = False) -> None:
        self.warns = warns
        self._numbers = fds
        # What is taken out of the iterator is forgotten. A negative errno in
        # the place of a descriptor owns nothing, and closerange() would take
        # it for a range that begins at 0.
        self._spans = iter([(fd, fd + 1) for fd in fds if fd >= 0])

    __init__ = own

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

    def __del__(self) -> None:
        # If a signal handler raises in here, Python drops the exception, and
        # what is not closed by then stays open. Pure Python cannot help that.
        fds = self.fds
        if self.warns and fds:
            self.close()
            warnings.warn(f"unclosed descriptors of a peercred Message: {fds}", ResourceWarning, 2, source=self)


NOTHING = Owned()
