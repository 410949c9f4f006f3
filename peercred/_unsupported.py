"""The twin of _linux where there is no Linux: the same functions, and each refuses."""

import sys
from errno import ENOTSUP

from ._cred import Cred
from ._errors import UnsupportedError


def peercred(fd: int) -> Cred:
    raise _error()


def peergroups(fd: int) -> tuple[int, ...]:
    raise _error()


def peersec(fd: int) -> bytes:
    raise _error()


def peerpidfd(fd: int) -> int:
    raise _error()


def overflow_ids() -> tuple[int, int]:
    raise _error()


def _error() -> UnsupportedError:
    return UnsupportedError(ENOTSUP, f"peercred asks the Linux kernel, and this platform is {sys.platform!r}")
