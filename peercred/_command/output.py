"""What the command writes: peers, as text or JSON, and what went wrong."""

import sys

# Type checkers skip the rest on other platforms.
assert sys.platform == "linux"

import contextlib
import grp
import json
import os
import shlex
from collections.abc import Iterable
from typing import TextIO

from .process import Peer, name_of

COLUMNS = {"TIME": 25, "PID": 7, "PROGRAM": 15, "UID": 17, "GID": 17, "GROUPS": 0}
NO_PROCESS = {
    True: "unknown: /proc does not show this process",
    False: "unknown: the process has ended",
    None: "unknown: needs Linux 6.5 or later",
}


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

    What is left in a buffer would be written again at exit. That can block, or
    fail with a traceback. Without a buffer (PYTHONUNBUFFERED), Python loses
    the rest of what a signal or a full pipe cuts short.
    """
    data = "".join(f"{line}\n" for line in lines).encode(stream.encoding, "backslashreplace")
    while data:
        data = data[os.write(stream.fileno(), data) :]


def show(peer: Peer, as_json: bool, *before: str, after: Iterable[str] = ()) -> None:
    """Write a peer as JSON, or as text with lines before and after."""
    if as_json:
        write(json.dumps(peer))
        return
    no_process = NO_PROCESS[peer["alive"]]
    values = {
        "pid": str(peer["pid"] or "unknown: it is in a PID namespace that cannot be seen from this one"),
        "program": no_process if peer["program"] is None else peer["program"],
        "command": no_process if peer["command"] is None else shlex.join(peer["command"]),
        "user": named(peer["user"], peer["uid"]),
        "group": named(peer["group"], peer["gid"]),
        "groups": "unknown: needs Linux 4.13 or later"
        if peer["groups"] is None
        else ", ".join(named(name_of(grp.getgrgid, gid), gid) for gid in peer["groups"]),
        "label": peer["label"] or "",
        "alive": {True: "yes", False: "no", None: no_process}[peer["alive"]],
    }
    width = 9 if sys.stdout.isatty() else 0
    lines = [f"{name + ':':<{width}} {printable(value) or 'none'}" for name, value in values.items()]
    write(*before, *lines, *after)


def write_head(as_json: bool) -> None:
    """Name the columns, on a terminal."""
    if not as_json and sys.stdout.isatty():
        write_row(*COLUMNS)


def show_row(peer: Peer, as_json: bool) -> None:
    """Write a peer as JSON, or in a row."""
    if as_json:
        write(json.dumps(peer))
        return
    # In quotes, a program's name cannot pose as other columns.
    program = shlex.quote(peer["program"] or "-")
    ids = named(peer["user"], peer["uid"]), named(peer["group"], peer["gid"])
    write_row(peer["time"], str(peer["pid"] or "-"), program, *ids, ",".join(map(str, peer["groups"] or "-")))


def write_row(*cells: str) -> None:
    """Columns on a terminal, tabs between the cells elsewhere."""
    words = [printable(cell) for cell in cells]
    if sys.stdout.isatty():
        words = [f"{word:<{width}}" for word, width in zip(words, COLUMNS.values(), strict=True)]
    write(("  " if sys.stdout.isatty() else "\t").join(words).rstrip())


def named(name: str | None, number: int) -> str:
    return str(number) if name is None else f"{name} ({number})"


def printable(line: str) -> str:
    """Escape what is not safe on a terminal.

    A program's name, a label or a path may hold escape sequences.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
