"""Where the command writes, its usage and its exit codes: also where it cannot write."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import shlex
import socket
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest
from command import (
    COMMAND,
    ENVIRONMENT,
    as_argument,
    deadline,  # noqa: F401
    here,  # noqa: F401
    proc,
    run,
    wait_until,
)
from peers import Child, call, needs_pidfd

from peercred.__main__ import main

MODES = ["", "--help", "--version", "PATH", "--json PATH"]


@pytest.fixture
def shell(server):
    """Run the command by a shell, with redirections."""

    def shell(arguments, redirections, **environment):
        arguments = arguments.replace("PATH", shlex.quote(as_argument(server.getsockname().decode())))
        return subprocess.run(
            f"{shlex.join(COMMAND)} {arguments} {redirections}",
            shell=True,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**ENVIRONMENT, **environment},
        )

    return shell


@pytest.mark.parametrize("arguments", MODES)
def test_full_device(shell, arguments):
    """Output that cannot be written is exit code 1, and one line that says why."""
    result = shell(arguments, ">/dev/full")
    assert re.fullmatch("peercred: (.*: )?cannot write to standard output: No space left on device\n", result.stderr)
    assert result.returncode == 1


@pytest.mark.parametrize("arguments", ["", "--json PATH", "--nonsense"])
def test_closed_standard_output(shell, arguments):
    """So is a closed standard output."""
    result = shell(arguments, ">&-")
    assert result.stderr == "peercred: there is no standard output to write to\n"
    assert result.returncode == 1


@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_pipe_without_a_reader(server, buffering):
    """So is a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stdout:
        name = as_argument(server.getsockname().decode())
        env = {**ENVIRONMENT, **buffering}
        result = run(name, capture_output=False, stdout=stdout, stderr=subprocess.PIPE, env=env)
    assert re.fullmatch("peercred: (.*: )?cannot write to standard output: Broken pipe\n", result.stderr)
    assert result.returncode == 1


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(("arguments", "status"), [("/missing", 1), ("--nonsense", 2), ("--mode 600", 2)])
def test_no_standard_error(shell, redirection, arguments, status):
    """What cannot be written on standard error is not written on standard output, and the exit code is the same."""
    result = shell(arguments, redirection)
    assert (result.stdout, result.stderr) == ("", "")
    assert result.returncode == status


@pytest.mark.parametrize("redirections", [">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>&-", ">/dev/full 2>/dev/full"])
def test_nowhere_to_write(shell, redirections):
    """Where neither output can be written there is the exit code alone."""
    result = shell("PATH", redirections)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "")


def test_no_standard_input(shell):
    """It needs no standard input."""
    for arguments in ("", "PATH"):
        assert shell(arguments, "<&-").returncode == 0


def test_usage_is_escaped(here):  # noqa: F811
    """A file's name that the shell has put on the command line does not write on the terminal."""
    result = here("a", "b\x1b[2J")
    assert result.returncode == 2
    assert "\x1b" not in result.stderr
    assert r"b\x1b[2J" in result.stderr


def test_help_and_version(here):  # noqa: F811
    """--help explains, --version tells, and the command is installed as `peercred`."""
    assert "Show who is behind a Unix socket" in here("--help").stdout
    assert here("--version").stdout == f"peercred {version('peercred')}\n"
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
        ["--lis", "a"],
        *(["--listen", "a", "--mode", mode] for mode in ("", "8", "0o600", "-1", "1000", "07777", "rw")),
        *(["a", "--timeout", time] for time in ("", "0", "-1", "nan", "inf", "1e99", "soon")),
    ],
    ids=" ".join,
)
def test_usage(arguments, tmp_path, here, monkeypatch):  # noqa: F811
    """A wrong command line is exit code 2, and nothing is done."""
    monkeypatch.chdir(tmp_path)
    result = here(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: peercred")
    assert re.search(r"^peercred: .+\n\Z", result.stderr, re.MULTILINE)
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


def serve_with_long_command(server):
    """Listen, as a process whose command line is longer than a pipe."""
    server.listen()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execv("/bin/sleep", ["sleep", *["0" * 50_000] * 3, "1000"])


@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_long_command_line(server, buffering):
    """A command line that is longer than a pipe is shown whole."""
    with Child(lambda: serve_with_long_command(server)) as child:
        wait_until(lambda: len(proc(child.pid, "cmdline")) > 100_000)
        name = as_argument(server.getsockname().decode())
        peer = json.loads(run("--json", name, env={**ENVIRONMENT, **buffering}).stdout)
        child.kill()
    assert peer["command"] is None or peer["command"] == ["sleep", *["0" * 50_000] * 3, "1000"]


@needs_pidfd
@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_full_pipe_that_does_not_block(server, buffering):
    """A pipe that does not block and takes only a part is exit code 1: nothing is lost in silence."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, b"-" * (fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) - os.sysconf("SC_PAGE_SIZE")))
    with open(writer, "wb") as stdout, Child(lambda: serve_with_long_command(server)) as child:
        wait_until(lambda: len(proc(child.pid, "cmdline")) > 100_000)
        name = as_argument(server.getsockname().decode())
        result = run(
            "--json",
            name,
            capture_output=False,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={**ENVIRONMENT, **buffering},
        )
        child.kill()
    os.close(reader)
    assert result.returncode == 1
    assert re.fullmatch("peercred: .*: cannot write to standard output: .+\n", result.stderr)


def test_limit_on_the_size_of_files(server, here):  # noqa: F811
    """A file that may not grow any more is exit code 1, and one line that says why."""
    name = as_argument(server.getsockname().decode())

    def inside():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # for the answer too little, for the error enough
        return here(name)

    result = call(inside)
    assert (result.returncode, len(result.stdout)) == (1, 100)
    assert result.stderr == f"peercred: {name}: cannot write to standard output: File too large\n"


def test_output_that_is_not_unicode():
    """What the encoding of standard output lacks is escaped, and the rest is written."""
    with socket.socket(socket.AF_UNIX) as named:
        named.bind("\0" + (name := f"peercred-\N{SNOWMAN}-{os.getpid()}"))
        named.listen()
        output = run("@" + name, env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}).stdout
    assert output.startswith(f"@peercred-\\u2603-{os.getpid()}: this process called listen(2).\n")


def test_help_fits_a_terminal(here, monkeypatch):  # noqa: F811
    """No line of the help or of a usage error is longer than a terminal of 80 columns is wide."""
    monkeypatch.setenv("COLUMNS", "80")
    for text in (here("--help").stdout, here("--nonsense").stderr):
        assert max(map(len, text.splitlines())) < 80


@pytest.mark.parametrize("arguments", [["--timeout", "0.001"], ["--timeout", "1000000"], ["--mode", "777", "--listen"]])
def test_limits_of_usage(arguments, here, tmp_path):  # noqa: F811
    """The smallest and the largest values are taken: what fails then is the missing directory, not the usage."""
    result = here(*arguments, str(tmp_path / "missing" / "door"))
    assert (result.returncode, result.stderr) == (1, f"peercred: {tmp_path}/missing/door: No such file or directory\n")
