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


def passing(fd: int) -> int:
    raise _error()


def set_passing(fd: int, wanted: int) -> None:
    raise _error()


def is_stream(fd: int) -> bool:
    raise _error()


def unpack_cred(payload: bytes) -> Cred | None:
    raise _error()


def pack_cred(cred: Cred) -> bytes:
    raise _error()


def cut_off() -> OSError:
    raise _error()


def no_pidfd(payload: int | None) -> OSError:
    raise _error()


def refuse_claim(error: OSError, cred: Cred) -> None:
    raise _error()


def _error() -> UnsupportedError:
    return UnsupportedError(ENOTSUP, f"peercred asks the Linux kernel, and this platform is {sys.platform!r}")
