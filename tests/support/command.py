"""Ways to run the command `peercred`, and to wait for what it does.

`run` and `started` start it as a process. The fixture `in_process`, of
tests/command/conftest.py, calls it in the process of the tests, which is thirty
times as fast.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peers import CLONE_NEWNS, LIBC, MS_PRIVATE, MS_REC, Child, bind_mount, call, connect, connect_soon, state, unshare

COMMAND = [sys.executable, "-m", "peercred"]
# The signals that end the command.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# The keys of an answer in JSON.
KEYS = ["time", "pid", "program", "command", "uid", "user", "gid", "group", "groups", "label", "alive"]
# With PYTHONUNBUFFERED, output would never wait in a buffer.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """Check that the command failed with one line, and return that line."""
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"peercred: .+\n", result.stderr)
    return result.stderr


def default_signals() -> None:
    """Make signals do what they do in a terminal.

    A script that runs the tests in the background has some of them ignored.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as a process, and wait for its end."""
    defaults = {"capture_output": True, "text": True, "check": False, "env": ENVIRONMENT}
    return subprocess.run([*COMMAND, *arguments], **{**defaults, **options})


def output_of(*arguments: str, **options: Any) -> str:
    """Run the command, which must succeed, and return its standard output."""
    result = run(*arguments, **options)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def ended_by(command: subprocess.Popen[str], number: int) -> bool:
    """Wait for the command to end. Did this signal end it?

    The command exits with 128 + number, as a shell does. Where it has nothing
    to clean up, the signal itself ends it.
    """
    return command.wait() in (128 + number, -number)


def terminate(command: subprocess.Popen[str]) -> None:
    """End the command with SIGTERM, and check that it did end by that."""
    command.terminate()
    assert ended_by(command, signal.SIGTERM)


@contextlib.contextmanager
def listening(path: object, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run `peercred --listen`, with this process as its first client.

    `first_line` is what it writes about this client. SIGTERM ends the command
    if it still runs at the end.
    """
    with started("--listen", str(path), *arguments, **options) as command:
        address = f"\0{str(path)[1:]}" if str(path).startswith("@") else str(path)
        with connect_soon(address, command) as client:
            assert client.recv(1) == b""  # the command has asked about this process, and closed
        if command.stdout:
            command.first_line = command.stdout.readline()
        yield command


@contextlib.contextmanager
def started(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start the command. SIGTERM ends it if it still runs at the end."""
    defaults = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": ENVIRONMENT,
        "preexec_fn": default_signals,
    }
    with subprocess.Popen([*COMMAND, *arguments], **{**defaults, **options}) as command:
        try:
            yield command
        except BaseException:
            command.kill()
            raise
        command.terminate()


@contextlib.contextmanager
def named(server: socket.socket, name: bytes) -> Iterator[Child]:
    """A process in which `server` listens, and whose program has this name."""

    def listen() -> None:
        server.listen()
        Path("/proc/self/comm").write_bytes(name)

    with Child(listen) as child:
        child.result()
        yield child


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    while not condition():
        time.sleep(0.01)


def wait_until_asleep(command: subprocess.Popen[str]) -> None:
    """Wait until the command waits: for a client, or to write its output."""
    wait_until(lambda: state(f"/proc/{command.pid}") == "S")


def full_pipe() -> tuple[int, int]:
    """The two ends of a pipe that is full: a write to it blocks."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"-" * size)
    os.set_blocking(writer, True)
    return reader, writer


def leave_dead_socket(path: Path) -> None:
    """Leave the file of a socket that no process has open any more."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def can_connect(path: Path) -> bool:
    """Whether a process listens at this path."""
    with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
        connect(str(path)).close()
        return True
    return False


def as_argument(sock: socket.socket) -> str:
    """The socket's address as it is written on the command line.

    That is @NAME if the address is abstract.
    """
    address = os.fsdecode(sock.getsockname())
    return "@" + address[1:] if address.startswith("\0") else address


def proc_file(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


def user_name(uid: int) -> str | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return None


def group_name(gid: int) -> str | None:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return None


def shown_user(uid: int) -> str:
    """How the command writes a uid: with its name, if it has one."""
    return f"{name} ({uid})" if (name := user_name(uid)) else str(uid)


def shown_group(gid: int) -> str:
    """How the command writes a gid: with its name, if it has one."""
    return f"{name} ({gid})" if (name := group_name(gid)) else str(gid)


def call_with_names(directory: Path, user: bytes, group: bytes, function: Callable[[], Any]) -> Any:
    """What `function` returns where uid and gid 1234 have these names.

    It runs in a mount namespace, which has an /etc/passwd and an /etc/group of
    its own.
    """
    (directory / "passwd").write_bytes(user + b":x:1234:1234::/:/bin/sh\n")
    (directory / "group").write_bytes(group + b":x:1234:\n")

    def inside() -> Any:
        unshare(CLONE_NEWNS)
        assert LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0
        for name in ("passwd", "group"):
            bind_mount(directory / name, Path("/etc", name))
        return function()

    return call(inside)
