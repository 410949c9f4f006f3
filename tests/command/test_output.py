"""Where the command writes its output, and how it fails if it cannot."""

from __future__ import annotations

import contextlib
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
    full_pipe,
    named,
    proc_file,
    run,
    started,
    wait_until,
    wait_until_asleep,
)
from peers import Child, call, needs_cpython, needs_pidfd

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


@needs_pidfd
@pytest.mark.usefixtures("long_command")
def test_long_command_line(server, environment):
    """A command line is cut off after 64 KiB, and the cut is marked."""
    shown = [*LONG_COMMAND[:2], "0" * (64 * 1024 - len("sleep\0") - 50_001), "..."]
    output = run("--json", as_argument(server), env=environment).stdout
    assert json.loads(output)["command"] == shown
    assert f"command: {' '.join(shown)}" in run(as_argument(server), env=environment).stdout.splitlines()


@needs_pidfd
@pytest.mark.usefixtures("long_command")
def test_full_pipe_that_does_not_block(server, environment):
    """If a non-blocking pipe takes only a part, the command waits."""
    reader, writer = full_pipe()
    full = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    os.set_blocking(writer, False)
    with started("--json", as_argument(server), stdout=writer, env=environment) as command, open(reader, "rb") as file:
        os.close(writer)
        server.accept()[0].close()
        wait_until_asleep(command)
        assert command.poll() is None
        assert set(file.read(full)) == {ord("-")}
        assert json.loads(file.read())["command"][-1] == "..."
        assert (command.wait(), command.stderr.read()) == (0, "")


def test_limit_on_the_size_of_files(server, in_process):
    """If its output file may not grow, the command fails and says why."""

    def inside():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # holds the error, but not the answer
        result = in_process(as_argument(server))
        resource.setrlimit(resource.RLIMIT_FSIZE, before)  # coverage writes a file
        return result

    result = call(inside)
    assert (result.returncode, len(result.stdout)) == (1, 100)
    assert result.stderr == f"peercred: {as_argument(server)}: cannot write to standard output: File too large\n"


starts_in_any_locale = needs_cpython("PyPy does not start in this locale")

# U+06DB is \xdb\x9b in UTF-8, and the other two are \x9b in these encodings.
# An 8-bit terminal takes \x9b for CSI, which begins an escape sequence.
CSI = {"utf-8": "\N{ARABIC SMALL HIGH THREE DOTS}", "koi8-r": "\u2321", "cp1251": "\u203a"}


@needs_pidfd
@pytest.mark.parametrize("encoding", CSI)
@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=" ".join)
def test_locale_that_is_not_utf8(encoding, arguments):
    """All but ASCII is escaped if the locale's codeset is not UTF-8.

    It makes no difference in which encoding Python writes.
    """
    assert b"\x9b" in CSI[encoding].encode(encoding)
    env = {**ENVIRONMENT, "LC_ALL": "C", "PYTHONIOENCODING": encoding}
    answer, error = outputs_about(CSI[encoding], arguments, env)
    assert (answer + error).isascii()
    escape = CSI[encoding].encode("ascii", "backslashreplace")
    assert answer.count(escape) == (1 if arguments else 2)
    assert error.count(escape) == 1


@needs_pidfd
@pytest.mark.parametrize(
    "given",
    [{}, {"LANG": "C"}, {"LC_CTYPE": "POSIX"}, pytest.param({"LANG": "missing.KOI8-R"}, marks=starts_in_any_locale)],
    ids=str,
)
def test_locale_that_python_changes(given):
    """Where Python makes a UTF-8 locale of C by itself, it is C (PEP 538)."""
    env = {name: value for name, value in ENVIRONMENT.items() if name != "LANG" and not name.startswith("LC_")}
    answer, error = outputs_about(CSI["utf-8"], [], {**env, **given})
    assert (answer + error).isascii()


@pytest.fixture(scope="session")
def koi8_r(tmp_path_factory):
    """An environment with a locale whose codeset is KOI8-R."""
    directory = tmp_path_factory.mktemp("locales")
    localedef = ["localedef", "--no-archive", "-c", "-i", "POSIX", "-f", "KOI8-R", str(directory / "ru.KOI8-R")]
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(localedef, capture_output=True, check=False)
    if not (directory / "ru.KOI8-R").exists():
        pytest.skip(reason="needs localedef and its sources, to make a locale with KOI8-R")
    return {**ENVIRONMENT, "LOCPATH": str(directory), "LC_ALL": "ru.KOI8-R"}


@needs_pidfd
@starts_in_any_locale
def test_koi8_r(koi8_r):
    """A program's name cannot write CSI where the locale is KOI8-R."""
    answer, error = outputs_about(CSI["koi8-r"], [], koi8_r)
    assert (answer + error).isascii()


@needs_pidfd
@pytest.mark.parametrize("given", [{"LC_ALL": "C.UTF-8"}, {"LC_ALL": "", "LC_CTYPE": "", "LANG": "C.UTF-8"}])
def test_locale_with_utf8(given):
    """Characters that can be printed are not escaped in a locale with UTF-8."""
    answer, error = outputs_about("caf\u00e9\u009b", [], {**ENVIRONMENT, **given})
    assert answer.decode().count(r"caf\u00e9\x9b".replace(r"\u00e9", "\u00e9")) == 2
    assert error.decode().count(r"caf\u00e9\x9b".replace(r"\u00e9", "\u00e9")) == 1


def outputs_about(name, arguments, env):
    """What the command writes about a program and a path with this name.

    That is on standard output, and on standard error if nobody listens.
    """
    # Containers may share abstract addresses, and have equal pids.
    address = f"peercred-{os.urandom(8).hex()}-{name}".encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(b"\0" + address)
        with named(server, name.encode()):
            answer = subprocess.run([*COMMAND, *arguments, b"@" + address], env=env, capture_output=True, check=True)
    error = subprocess.run([*COMMAND, *arguments, b"@" + address], env=env, capture_output=True, check=False)
    assert (answer.stderr, error.stdout) == (b"", b"")
    return answer.stdout, error.stderr
