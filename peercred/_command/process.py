"""What can be found out about a peer, from the kernel, /proc and user names."""

import errno
import grp
import os
import pwd
import re
import select
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict

import peercred

# Type checkers skip the rest on other platforms.
assert sys.platform == "linux"


class Peer(TypedDict):
    """A peer, with the keys of --json.

    None is what is not known. A label of None is a peer without a label.
    """

    time: str
    pid: int | None
    program: str | None
    command: list[str] | None
    uid: int
    user: str | None
    gid: int
    group: str | None
    groups: tuple[int, ...] | None
    label: str | None
    alive: bool | None


def peer_of(conn: socket.socket) -> Peer:
    """All that can be found out about the peer of a connection."""
    cred = peercred.read(conn)
    program, command, alive = process_of(conn)
    label = supported(peercred.read_label, conn)
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "pid": cred.pid,
        "program": program,
        "command": command,
        "uid": cred.uid,
        "user": name_of(pwd.getpwuid, cred.uid),
        "gid": cred.gid,
        "group": name_of(grp.getgrgid, cred.gid),
        "groups": supported(peercred.read_groups, conn),
        "label": None if label is None else text(label),
        "alive": alive,
    }


def supported(question: Callable[[socket.socket], Any], conn: socket.socket) -> Any:
    """The answer, or None if this kernel has none to give."""
    try:
        return question(conn)
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.ENODATA):
            raise
        return None


def process_of(conn: socket.socket) -> tuple[str | None, list[str] | None, bool | None]:
    """The peer's program and command line, and whether it is alive.

    The pidfd makes sure that it is never another process that has its pid now.
    """
    try:
        pidfd = supported(peercred.open_pidfd, conn)
    except ProcessLookupError:
        return None, None, False
    if pidfd is None:
        return None, None, None
    try:
        program = command = None
        # These mean that it has ended, or that /proc hides it.
        with suppress(FileNotFoundError, PermissionError, ProcessLookupError):
            # The pid as this /proc has it, or -1. This /proc may be that of
            # another PID namespace.
            pid = re.findall(r"^Pid:\s*(.*)$", Path(f"/proc/self/fdinfo/{pidfd}").read_text(), re.MULTILINE)[0]
            program = text(Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n"))
            # A title that a program wrote over its arguments ends in NULs.
            words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
            command = [text(word) for word in words.split(b"\0")] if words else []
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        if ended.poll(0):  # /proc may have shown another process with its pid
            return None, None, False
        return program, command, True
    finally:
        os.close(pidfd)


def name_of(look_up: Callable[[int], Any], number: int) -> str | None:
    """The name of a user or a group, if it has one."""
    try:
        return text(os.fsencode(look_up(number)[0]))
    except KeyError:
        return None


def text(raw: bytes) -> str:
    """Bytes as text. The lone surrogates of os.fsdecode() are no valid JSON."""
    return raw.decode(errors="backslashreplace")
