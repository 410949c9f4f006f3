"""The back end on other platforms: every function raises UnsupportedError.

The signatures are those of `_linux` and `_linux_messages`.
"""

from __future__ import annotations

import sys
from errno import ENOTSUP

from ._errors import UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from typing import Any

    from _typeshed import ReadableBuffer

    from ._cred import Cred
    from ._message import Message


def read(fd: int) -> Cred:
    raise _error()


def read_groups(fd: int) -> tuple[int, ...]:
    raise _error()


def read_with_groups(fd: int) -> tuple[Cred, tuple[int, ...], OSError | None]:
    raise _error()


def read_label(fd: int) -> bytes:
    raise _error()


def open_pidfd(fd: int, opened: list[int]) -> None:
    raise _error()


def overflow_ids() -> tuple[int, int]:
    raise _error()


def look_up(kind: str, name: str) -> int:
    raise _error()


def enable(sock: socket.socket, creds: bool, pidfd: bool, label: bool, fds: bool) -> None:
    raise _error()


def receive(sock: socket.socket, bufsize: int, flags: int, max_fds: int) -> Message:
    raise _error()


def send(
    sock: socket.socket,
    buffers: list[ReadableBuffer],
    cred: Cred | None,
    fds: Iterable[int],
    flags: int,
    address: Any,
) -> int:
    raise _error()


def _error() -> UnsupportedError:
    return UnsupportedError(ENOTSUP, f"peercred needs Linux, and this platform is {sys.platform!r}")
