"""Where the command writes, on every platform, and what is safe to write."""

import contextlib
import locale
import os
import select
import sys
from collections.abc import Iterable
from typing import TextIO


def write(*lines: str) -> None:
    """Write to standard output. An OSError says so."""
    try:
        emit(sys.stdout, lines)
    except OSError as error:
        raise OSError(error.errno, f"cannot write to standard output: {error.strerror}") from None


def complain(message: str, *before: str) -> None:
    """Write to standard error if possible, and never to standard output."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            emit(sys.stderr, [*before, f"peercred: {printable(message)}"])


def emit(stream: TextIO, lines: Iterable[str]) -> None:
    """Write lines past Python's buffer.

    What is left in a buffer is written again at exit, where it can block or
    fail with a traceback. Without a buffer (PYTHONUNBUFFERED), Python loses
    what follows an interrupted write.
    """
    # An 8-bit terminal takes some bytes of UTF-8 and of other encodings for
    # control characters. If the locale is C, Python itself sets LC_CTYPE to
    # C.UTF-8, unless LC_ALL is set (PEP 538).
    is_c = os.environ.get("LC_CTYPE") == "C.UTF-8" and not os.environ.get("LC_ALL")
    is_utf8 = sys.platform == "linux" and not is_c and locale.nl_langinfo(locale.CODESET) == "UTF-8"
    data = "".join(f"{line}\n" for line in lines).encode("utf-8" if is_utf8 else "ascii", "backslashreplace")
    while data:
        try:
            data = data[os.write(stream.fileno(), data) :]
        except BlockingIOError:  # it is full, and another process made it non-blocking
            select.select([], [stream], [])


def printable(line: str) -> str:
    """Escape what a hostile name or path could do to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
