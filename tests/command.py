"""The command `peercred` as its tests run it, never without a deadline.

`run` and what is built on it start a process. The fixture `here` runs the
command in the process of the tests, which is thirty times as fast: for what it
answers to a command line.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import connect, connect_soon

from peercred.__main__ import main

COMMAND = [sys.executable, "-m", "peercred"]
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
KEYS = ["time", "pid", "program", "command", "uid", "user", "gid", "group", "groups", "label", "alive"]
# PYTHONUNBUFFERED hides what happens to output that is still in a buffer.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """Whatever a test waits for, it waits no longer than this."""

    def expired(*_: object) -> None:
        raise TimeoutError("the test waits for something that does not happen")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, 120)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Runs the command in this process, whose directory and signals are restored at the end."""

    def here(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["peercred", *arguments])
        directory = os.getcwd()
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        if os.getcwd() != directory:
            os.chdir(directory)
        return subprocess.CompletedProcess(arguments, status, *capfd.readouterr())

    signals = {number: signal.getsignal(number) for number in ENDING}
    capfd.readouterr()
    yield here
    for number, handler in signals.items():
        signal.signal(number, handler)


@pytest.fixture
def refused(here: Callable[..., Any]) -> Callable[..., str]:
    """The one line on standard error, with exit code 1 and nothing on standard output."""
    return lambda *arguments: refusal(here(*arguments))


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"peercred: .+\n", result.stderr)
    return result.stderr


def default_signals() -> None:
    """Signals do what they do in a terminal, even if the tests run in the background of a script."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)


def run(*arguments: str, python: tuple[str, ...] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    defaults = {"capture_output": True, "text": True, "check": False, "timeout": 60, "env": ENVIRONMENT}
    return subprocess.run([sys.executable, *python, "-m", "peercred", *arguments], **{**defaults, **options})


def answered(*arguments: str, **options: Any) -> str:
    """What it writes on standard output, with exit code 0 and nothing on standard error."""
    result = run(*arguments, **options)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def ended_by(command: subprocess.Popen[str], number: int) -> bool:
    """Has it ended as the shell shows for this signal? It has by itself, or by the signal where nothing was left."""
    return command.wait() in (128 + number, -number)


@contextlib.contextmanager
def listening(path: object, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command with --listen. It has seen this process as its first client. SIGTERM ends it if it still runs."""
    with started("--listen", str(path), *arguments, **options) as command:
        address = f"\0{str(path)[1:]}" if str(path).startswith("@") else str(path)
        with connect_soon(address, command) as client:
            assert client.recv(1) == b""  # the command has asked the kernel about this process
        if command.stdout:
            command.first_line = command.stdout.readline()
        yield command


@contextlib.contextmanager
def started(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command as it runs. SIGTERM ends it if it still does at the end."""
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


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does. The deadline is that of the test."""
    while not condition():
        time.sleep(0.01)


def wait_until_asleep(command: subprocess.Popen[str]) -> None:
    """Wait until the command itself waits for something: for a client, or for its output to be read."""
    wait_until(lambda: Path(f"/proc/{command.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S")


def user(uid: int) -> str | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return None


def group(gid: int) -> str | None:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return None


def named(name: str | None, number: int) -> str:
    return f"{name} ({number})" if name else str(number)


def proc(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


def as_argument(address: str) -> str:
    """An address as it is given on the command line: @NAME if it is abstract."""
    return "@" + address[1:] if address.startswith("\0") else address


def can_connect(path: Path) -> bool:
    with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
        connect(str(path)).close()
        return True
    return False
