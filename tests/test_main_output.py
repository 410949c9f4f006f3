"""Where the command writes, its usage and its exit codes: also where it cannot write."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest
from command import (
    COMMAND,
    ENVIRONMENT,
    answered,
    as_argument,
    deadline,  # noqa: F401
    run,
)

from peercred.__main__ import main

MODES = ["", "--json", "--help", "--version", "PATH", "--json PATH"]


@pytest.fixture(params=[{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def shell(request, server):
    """Run the command by a shell, with redirections, as buffered as Python is by default and not at all."""

    def shell(arguments, redirections):
        arguments = arguments.replace("PATH", shlex.quote(as_argument(server.getsockname().decode())))
        return subprocess.run(
            f"{shlex.join(COMMAND)} {arguments} {redirections}",
            shell=True,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**ENVIRONMENT, **request.param},
        )

    return shell


@pytest.mark.parametrize("arguments", MODES)
def test_full_device(shell, arguments):
    """Output that cannot be written is exit code 1, and one line that says why."""
    result = shell(arguments, ">/dev/full")
    assert result.stderr == "peercred: standard output: No space left on device\n"
    assert result.returncode == 1


@pytest.mark.parametrize("arguments", [*MODES, "--nonsense"])
def test_closed_standard_output(shell, arguments):
    """So is a closed standard output."""
    result = shell(arguments, ">&-")
    assert result.stderr == "peercred: there is no standard output to write to\n"
    assert result.returncode == 1


@pytest.mark.parametrize("arguments", MODES)
@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_pipe_without_a_reader(server, arguments, buffering):
    """So is a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    words = arguments.replace("PATH", as_argument(server.getsockname().decode())).split()
    with open(writer, "wb") as stdout:
        result = run(
            *words, capture_output=False, stdout=stdout, stderr=subprocess.PIPE, env={**ENVIRONMENT, **buffering}
        )
    assert result.stderr == "peercred: standard output: Broken pipe\n"
    assert result.returncode == 1


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(("arguments", "status"), [("/missing", 1), ("--nonsense", 2), ("--mode 600", 2)])
def test_no_standard_error(shell, redirection, arguments, status):
    """What cannot be written on standard error is not written on standard output, and the exit code is the same."""
    result = shell(arguments, redirection)
    assert (result.stdout, result.stderr) == ("", "")
    assert result.returncode == status


@pytest.mark.parametrize("arguments", MODES)
def test_nowhere_to_write(shell, arguments):
    """Without both there is the exit code alone."""
    for redirections in (">&- 2>&-", ">/dev/full 2>&-", ">/dev/full 2>/dev/full"):
        result = shell(arguments, redirections)
        assert (result.returncode, result.stdout, result.stderr) == (1, "", "")


def test_no_standard_input(shell):
    """It needs no standard input."""
    for arguments in ("", "PATH"):
        assert shell(arguments, "<&-").returncode == 0


def test_usage_is_escaped():
    """A file's name that the shell has put on the command line does not write on the terminal."""
    result = run("a", "b\x1b[2J")
    assert result.returncode == 2
    assert "\x1b" not in result.stderr
    assert r"b\x1b[2J" in result.stderr


def test_help_and_version():
    """--help explains, --version tells, and the command is installed as `peercred`."""
    assert "Show who is behind a Unix socket" in answered("--help")
    assert answered("--version") == f"peercred {version('peercred')}\n"
    (command,) = entry_points(group="console_scripts", name="peercred")
    assert command.load() is main


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["a", "b"],
        ["a", "--listen", "b"],
        [""],
        ["--listen", ""],
        ["--listen"],
        ["--mode", "600"],
        ["a", "--mode", "600"],
        ["--timeout", "1"],
        ["--listen", "a", "--timeout", "1"],
        *(["--listen", "a", "--mode", mode] for mode in ("", "8", "0o600", "-1", "1000", "07777", "rw")),
        *(["a", "--timeout", time] for time in ("", "0", "-1", "nan", "inf", "1e99", "soon")),
    ],
    ids=" ".join,
)
def test_usage(arguments, tmp_path):
    """A wrong command line is exit code 2, and nothing is done."""
    result = run(*arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: peercred")
    assert re.search(r"^peercred: error: .+\n\Z", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_another_platform():
    """Where there is no Linux: one line, no traceback, exit code 1. Nor need there be Unix sockets, pwd and grp."""
    program = (
        "import socket, sys; sys.platform = 'plan9'; sys.modules.update(pwd=None, grp=None, fcntl=None); "
        "del socket.AF_UNIX; from peercred.__main__ import main; sys.exit(main())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"peercred: .*'plan9'\n", result.stderr)
