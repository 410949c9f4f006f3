"""What others can put in the command's way: names that write on a terminal, planted modules, limits, floods."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import (
    ENDING,
    ENVIRONMENT,
    as_argument,
    can_connect,
    deadline,  # noqa: F401
    default_signals,
    ended_by,
    here,  # noqa: F401
    listening,
    proc,
    started,
    wait_until,
    wait_until_asleep,
)
from peers import (
    CLONE_NEWNS,
    LIBC,
    MS_PRIVATE,
    MS_REC,
    Child,
    become,
    bind_mount,
    call,
    connect,
    needs_namespaces,
    needs_pidfd,
    needs_root,
    unshare,
)

from peercred.__main__ import main

HOSTILE = [
    b"\x1b[2J", b"\x1b]0;title\x07", b"\x1bP+q\x1b\\", b"\x9b2J", "\x9b2J".encode(), b"\x08\x08", b"\x7f", b"\r", b"\n",
    b"\t", b"\x0e", "\u202eevil".encode(), "\u2066x".encode(), "\u200b".encode(), "\u2028".encode(), "\ufeff".encode(),
    "\U000e0041".encode(), "\u061c".encode(), b"\xff\xfe", b"\xed\xb2\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf",
]  # fmt: skip


def assert_safe(output):
    """Nothing but line ends and characters that Unicode calls graphic."""
    assert all(character.isprintable() or character == "\n" for character in output), ascii(output)


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_path_is_escaped(here, hostile, place):  # noqa: F811
    """No path writes on the terminal, be it in an error, in a usage error, or above an answer."""
    name = os.fsdecode(hostile)
    abstract = f"@{place}{name}"
    with socket.socket(socket.AF_UNIX) as server:
        for arguments in (
            [f"/missing{name}"],
            [abstract],
            ["--listen", f"/missing{name}/door"],
            ["a", f"b{name}"],
            [f"--{name}"],
            ["--mode", name, "--listen", "a"],
            ["--timeout", name, "a"],
        ):
            result = here(*arguments)
            assert result.returncode in (1, 2)
            assert result.stdout == ""
            assert_safe(result.stderr)
        server.bind(b"\0" + os.fsencode(abstract)[1:])
        server.listen()
        first, *rest = here(abstract).stdout.splitlines()
        assert first.startswith(f"@{place}\\")
        assert_safe(first)
        assert len(rest) in (8, 9)  # a hint follows if the tests are process 1


@needs_pidfd
def test_hostile_program_name_is_escaped(server, here):  # noqa: F811
    """No program's name breaks out of its line."""
    name = as_argument(server.getsockname().decode())

    def listen(hostile):
        server.listen()
        Path("/proc/self/comm").write_bytes(hostile)

    for hostile in HOSTILE:
        with Child(lambda hostile=hostile: listen(hostile)) as child:
            child.result()
            output = here(name).stdout
            assert_safe(output)
            assert len(output.splitlines()) in (9, 10)
            program = proc(child.pid, "comm").removesuffix(b"\n").decode(errors="backslashreplace")
            assert json.loads(here("--json", name).stdout)["program"] == program


@needs_pidfd
def test_program_name_cannot_pose_as_another_column(place):
    """On a terminal the name of a program that holds spaces stands in quotes."""
    forged = b"\1\1\1\1 root (0)"  # four characters each, so that the rest would stand below UID

    def visit():
        Path("/proc/self/comm").write_bytes(forged)
        return connect(str(place / "door")).detach()

    with listening(place / "door") as command, Child(visit) as child:
        child.result()
        assert command.stdout.readline().split("\t")[2] == r"'\x01\x01\x01\x01 root (0)'"


@needs_namespaces
@pytest.mark.parametrize("hostile", [name for name in HOSTILE if name != b"\n"], ids=ascii)
def test_names_of_users_are_escaped(server, tmp_path, hostile, here):  # noqa: F811
    """Neither a user's nor a group's name breaks out of its line."""
    (tmp_path / "passwd").write_bytes(hostile + b":x:1234:1234::/:/bin/sh\n")
    (tmp_path / "group").write_bytes(hostile + b":x:1234:\n")

    def inside():
        unshare(CLONE_NEWNS)
        assert LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0
        for name in ("passwd", "group"):
            bind_mount(tmp_path / name, Path("/etc", name))
        call(lambda: become(uid=1234, gid=1234, groups=(1234,)) or server.listen())
        return here(as_argument(server.getsockname().decode())).stdout

    output = call(inside)
    assert_safe(output)
    assert len(output.splitlines()) in (9, 10)
    assert len(re.findall(r"\(1234\)$", output, re.MULTILINE)) == 3


PLANTED = [
    "socket",
    "os",
    "sys",
    "signal",
    "pwd",
    "json",
    "argparse",
    "sitecustomize",
    "usercustomize",
    "cffi",
    "peercred",
]


@pytest.mark.parametrize("how", ["peercred", "python -I -m peercred"])
@pytest.mark.parametrize("arguments", [[], ["--version"]], ids=["child", "version"])
def test_planted_modules_are_not_run(tmp_path, how, arguments):
    """The command runs no module that someone has put into the current directory."""
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'planted')!r}, 'w').close()\n")
    command = [sys.executable, "-I", "-m", "peercred"]
    if how == "peercred":
        script = shutil.which("peercred", path=os.path.dirname(sys.executable))
        assert script, "the console script stands beside the interpreter"
        command = [script]
    env = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("PYTHON")}
    result = subprocess.run([*command, *arguments], cwd=tmp_path, env=env, capture_output=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("spare", range(7))
def test_limit_on_descriptors(here, spare):  # noqa: F811
    """With too few descriptors for its work the command says so, or it works: never a wrong answer or a traceback."""

    def inside():
        free = sorted(set(range(100)) - {int(name) for name in os.listdir("/proc/self/fd")})
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[spare], free[spare]))
        return here("--json")

    result = call(inside)
    if result.returncode == 0:
        assert spare > 1, "it needs two sockets"
        assert json.loads(result.stdout)["uid"] == os.geteuid()
    else:
        assert spare < 6
        assert (result.returncode, result.stdout) == (1, "")
        assert re.fullmatch("peercred: Too many open files.*\n", result.stderr)


@needs_root
def test_limit_on_processes(here):  # noqa: F811
    """Where no process can be started, the command that shows a child says so."""

    def inside():
        become(uid=123_456, gid=123_456)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        return here()

    result = call(inside)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"peercred: {os.strerror(errno.EAGAIN)}\n"


def test_stranger_who_connects_first(here, monkeypatch):  # noqa: F811
    """Another process that connects to the command before its child does is not shown in the child's place."""
    listen, strangers = socket.socket.listen, []

    def listen_and_be_visited(server):
        listen(server)
        strangers.append(Child(lambda: connect(server.getsockname()).detach()))
        strangers[0].result()

    monkeypatch.setattr(socket.socket, "listen", listen_and_be_visited)
    result = here("--json")
    with strangers[0] as stranger:
        assert json.loads(result.stdout)["pid"] not in (stranger.pid, os.getpid())
    assert (result.returncode, result.stderr) == (0, "")


def test_many_clients(place, effort):
    """Each of many clients is shown once, whether it stays or has gone again."""
    number = 300 * effort
    with started("--listen", str(place / "door"), "--json", stdout=subprocess.PIPE) as command:
        wait_until(lambda: (place / "door").exists() and can_connect(place / "door"))
        assert json.loads(command.stdout.readline())["pid"] == os.getpid()

        def visit():
            for _ in range(number):
                connect(str(place / "door")).close()

        with Child(visit) as first, Child(visit) as second:
            seen = [json.loads(command.stdout.readline())["pid"] for _ in range(2 * number)]
            first.result()
            second.result()
        assert sorted(set(seen)) == sorted([first.pid, second.pid])
        assert seen.count(first.pid) == seen.count(second.pid) == number
        command.terminate()
        assert ended_by(command, signal.SIGTERM)
        assert command.stdout.read() == ""


def test_several_at_once_at_one_path(place, effort):
    """Of several that start at once where a dead socket lies, one listens, and the others leave its socket alone."""
    for _ in range(2 * effort):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(place / "door"))
        with contextlib.ExitStack() as stack:
            commands = [stack.enter_context(started("--listen", str(place / "door"))) for _ in range(3)]
            wait_until(lambda commands=commands: sum(command.poll() is not None for command in commands) >= 2)
            [listener] = [command for command in commands if command.poll() is None]
            wait_until(lambda: can_connect(place / "door"))
            # The others are shown too if they have tried whether it is alive.
            visitors = {command.pid for command in commands} | {os.getpid()}
            pid = None
            while pid != os.getpid():
                pid = int(listener.stdout.readline().split("\t")[1])
                assert pid in visitors
            for command in commands:
                if command is not listener:
                    assert command.returncode == 1
                    assert re.fullmatch(f"peercred: {place}/door: .+\n", command.stderr.read())
            listener.terminate()
            assert ended_by(listener, signal.SIGTERM)
            assert listener.stderr.read() == ""
        assert not (place / "door").exists()


@pytest.mark.parametrize("number", ENDING)
def test_signal_at_any_time(place, effort, number, monkeypatch):
    """Whenever a signal comes, it ends --listen as the shell expects, without an exception, and no socket is left."""
    monkeypatch.setattr(sys, "argv", ["peercred", "--listen", str(place / "door")])
    for step in range(25 * effort):
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                default_signals()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
                status = main()
            finally:
                os._exit(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        try:
            time.sleep(0.02 * step / (25 * effort))  # listening takes about 10 ms
            os.kill(pid, number)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        assert status in (-number, 128 + number)
        assert not (place / "door").exists()


@pytest.mark.parametrize("number", ENDING)
def test_signal_while_the_answer_is_written(server, number):
    """A signal that comes while nobody reads the output ends the command by that signal, and without a traceback."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"-")
    os.set_blocking(writer, True)
    with open(reader, "rb"), started("--json", as_argument(server.getsockname().decode()), stdout=writer) as command:
        os.close(writer)
        server.accept()[0].close()
        wait_until_asleep(command)
        command.send_signal(number)
        assert command.wait() == -number
        assert command.stderr.read() == ""
