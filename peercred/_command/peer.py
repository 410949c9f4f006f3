"""What can be found out about a peer, and how it looks."""

import sys

assert sys.platform == "linux"  # type checkers skip the rest elsewhere

import errno
import grp
import os
import pwd
import re
import shlex
import socket
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import peercred

from .output import printable

LIMIT = 64 * 1024  # of a command line: a process can make it any length, without the memory for it
COLUMNS = {"TIME": 25, "PID": 7, "PROGRAM": 15, "UID": 17, "GID": 17, "GROUPS": 0}


def peer_of(conn: socket.socket) -> dict[str, Any]:
    """The peer of a connection, with the keys of --json.

    None is what is not known. A label of None is a peer without a label.
    """
    cred = peercred.read(conn)
    program, command, alive = process_of(conn)
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "pid": cred.pid,
        "program": program,
        "command": command,
        "uid": cred.uid,
        "user": name_of(pwd.getpwuid, cred.uid),
        "gid": cred.gid,
        "group": name_of(grp.getgrgid, cred.gid),
        "groups": answer_or_none(peercred.read_groups, conn),
        "label": answer_or_none(lambda conn: decoded(peercred.read_label(conn)), conn),
        "alive": alive,
    }


def answer_or_none(question: Callable[[socket.socket], Any], conn: socket.socket) -> Any:
    """The answer, or None if this kernel has none to give."""
    try:
        return question(conn)
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.ENODATA):
            raise
        return None


def process_of(conn: socket.socket) -> tuple[str | None, list[str] | None, bool | None]:
    """The peer's program and command line, and whether it is alive."""
    program = command = alive = None
    try:
        proc = peercred.open_proc(conn)
        try:
            # A zombie. With more threads, only the first has ended.
            if re.search(rb"^State:\sZ.*^Threads:\s1$", contents(proc, "status"), re.MULTILINE | re.DOTALL):
                return None, None, False
            alive = True
            program = decoded(contents(proc, "comm").removesuffix(b"\n"))
            # A title that a program wrote over its arguments ends in NULs.
            words = contents(proc, "cmdline").rstrip(b"\0")
            command = [decoded(word) for word in words.split(b"\0")] if words else []
        finally:
            os.close(proc)
    except ProcessLookupError:
        return None, None, False
    except (FileNotFoundError, PermissionError, peercred.UnsupportedError):
        pass  # what could not be seen is None
    return program, command, alive


def contents(proc: int, name: str) -> bytes:
    """A file about a process. After LIMIT, three dots stand for the rest."""
    with open(os.open(name, os.O_RDONLY, dir_fd=proc), "rb") as file:
        data = file.read(LIMIT)
        return data + b"\0..." if file.read(1) else data


def name_of(look_up: Callable[[int], Any], number: int) -> str | None:
    """The name of a user or a group, if it has one."""
    try:
        return decoded(os.fsencode(look_up(number)[0]))
    except KeyError:
        return None


def decoded(raw: bytes) -> str:
    """Bytes as text. The lone surrogates of os.fsdecode() are no valid JSON."""
    return raw.decode(errors="backslashreplace")


def lines_of(peer: dict[str, Any]) -> list[str]:
    """A line for each fact about a process that listens."""
    unknown = "unknown: /proc does not show this process, or Linux is older than 6.5"
    if peer["alive"] is False:
        unknown = "unknown: the process has ended"
    values = {
        "pid": str(peer["pid"] or "unknown: it is in a PID namespace that cannot be seen from this one"),
        "program": unknown if peer["program"] is None else peer["program"],
        "command": unknown if peer["command"] is None else shlex.join(peer["command"]),
        "user": named(peer["user"], peer["uid"]),
        "group": named(peer["group"], peer["gid"]),
        "groups": "unknown: needs Linux 4.13 or later"
        if peer["groups"] is None
        else ", ".join(named(name_of(grp.getgrgid, gid), gid) for gid in peer["groups"]),
        "label": peer["label"] or "",
        "alive": {True: "yes", False: "no: `ss -xlp` names who has the socket now", None: unknown}[peer["alive"]],
    }
    width = 9 if sys.stdout.isatty() else 0
    return [f"{name + ':':<{width}} {printable(value) or 'none'}" for name, value in values.items()]


def row_of(peer: dict[str, Any]) -> str:
    """A client, below the COLUMNS."""
    # In quotes, a program's name cannot pose as other columns.
    program = shlex.quote(peer["program"] or "-")
    ids = named(peer["user"], peer["uid"]), named(peer["group"], peer["gid"])
    return row([peer["time"], str(peer["pid"] or "-"), program, *ids, ",".join(map(str, peer["groups"] or "-"))])


def row(cells: Iterable[str]) -> str:
    """Columns on a terminal, tabs between the cells elsewhere."""
    if not sys.stdout.isatty():
        return "\t".join(map(printable, cells))
    widths = COLUMNS.values()
    return "  ".join(f"{printable(cell):<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def named(name: str | None, number: int) -> str:
    return str(number) if name is None else f"{name} ({number})"
