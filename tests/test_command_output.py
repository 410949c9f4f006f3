"""Where the command writes its output, and how it fails if it cannot."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import shlex
import socket
import subprocess

import pytest
from command import (
    COMMAND,
    ENVIRONMENT,
    as_argument,
    in_process_fixture,  # noqa: F401
    proc_file,
    run,
    wait_until,
)
from peers import Child, call, needs_pidfd

MODES = ["", "--help", "--version", "PATH", "--json PATH"]


@pytest.fixture(params=[{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def environment(request):
    """Environments in which Python buffers its output, and does not."""
    return {**ENVIRONMENT, **request.param}


@pytest.fixture
def shell(server):
    """A function that runs the command by a shell, with redirections."""

    def shell(arguments, redirections):
        arguments = arguments.replace("PATH", shlex.quote(as_argument(server)))
        return subprocess.run(
            f"{shlex.join(COMMAND)} {arguments} {redirections}",
            shell=True,
            capture_output=True,
            text=True,
            check=False,
            env=ENVIRONMENT,
        )

    return shell


# Longer than a pipe holds.
LONG_COMMAND = ["sleep", *["0" * 50_000] * 3, "1000"]


@pytest.fixture
def long_command(server):
    """Make `server` listen in a process with a very long command line."""

    def serve():
        server.listen()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execv("/bin/sleep", LONG_COMMAND)

    with Child(serve) as child:
        wait_until(lambda: len(proc_file(child.pid, "cmdline")) > 100_000)
        yield
        child.kill()


@pytest.mark.parametrize("arguments", MODES)
def test_full_device(shell, arguments):
    """If its output cannot be written, the command fails and says why."""
    result = shell(arguments, ">/dev/full")
    assert re.fullmatch("peercred: (.*: )?cannot write to standard output: No space left on device\n", result.stderr)
    assert result.returncode == 1


@pytest.mark.parametrize("arguments", ["", "--json PATH", "--nonsense"])
def test_closed_standard_output(shell, arguments):
    """If standard output is closed, the command fails and says so."""
    result = shell(arguments, ">&-")
    assert result.stderr == "peercred: there is no standard output to write to\n"
    assert result.returncode == 1


def test_pipe_without_a_reader(server, environment):
    """If nobody reads the pipe any more, the command fails and says so."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stdout:
        result = run(as_argument(server), capture_output=False, stdout=stdout, stderr=subprocess.PIPE, env=environment)
    assert re.fullmatch("peercred: (.*: )?cannot write to standard output: Broken pipe\n", result.stderr)
    assert result.returncode == 1


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(("arguments", "status"), [("/missing", 1), ("--nonsense", 2), ("--mode 600", 2)])
def test_no_standard_error(shell, redirection, arguments, status):
    """Errors never go to standard output, even without a standard error.

    The exit code stays the same.
    """
    result = shell(arguments, redirection)
    assert (result.stdout, result.stderr) == ("", "")
    assert result.returncode == status


@pytest.mark.parametrize("redirections", [">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>&-", ">/dev/full 2>/dev/full"])
def test_nowhere_to_write(shell, redirections):
    """Without any usable output, the exit code still says that it failed."""
    result = shell("PATH", redirections)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "")


def test_no_standard_input(shell):
    """The command needs no standard input."""
    for arguments in ("", "PATH"):
        assert shell(arguments, "<&-").returncode == 0


@pytest.mark.usefixtures("long_command")
def test_long_command_line(server, environment):
    """A command line that is longer than a pipe is shown in full."""
    peer = json.loads(run("--json", as_argument(server), env=environment).stdout)
    assert peer["command"] is None or peer["command"] == LONG_COMMAND


@needs_pidfd
@pytest.mark.usefixtures("long_command")
def test_full_pipe_that_does_not_block(server, environment):
    """If a non-blocking pipe takes only a part, the command fails."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, b"-" * (fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) - os.sysconf("SC_PAGE_SIZE")))
    with open(writer, "wb") as stdout:
        result = run(
            "--json", as_argument(server), capture_output=False, stdout=stdout, stderr=subprocess.PIPE, env=environment
        )
    os.close(reader)
    assert result.returncode == 1
    assert re.fullmatch("peercred: .*: cannot write to standard output: .+\n", result.stderr)


def test_limit_on_the_size_of_files(server, in_process):
    """If its output file may not grow, the command fails and says why."""

    def inside():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # holds the error, but not the answer
        return in_process(as_argument(server))

    result = call(inside)
    assert (result.returncode, len(result.stdout)) == (1, 100)
    assert result.stderr == f"peercred: {as_argument(server)}: cannot write to standard output: File too large\n"


def test_output_that_is_not_unicode():
    """Characters that the output's encoding lacks are escaped."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("\0" + (name := f"peercred-\N{SNOWMAN}-{os.getpid()}"))
        sock.listen()
        output = run("@" + name, env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}).stdout
    assert output.startswith(f"@peercred-\\u2603-{os.getpid()}: this process called listen(2).\n")
