"""The command under attack.

Others choose names that write on a terminal, plant modules, set limits,
connect many times, and send signals.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import (
    ENDING,
    ENVIRONMENT,
    as_argument,
    call_with_names,
    can_connect,
    default_signals,
    full_pipe,
    listening,
    named,
    proc_file,
    started,
    terminate,
    wait_until,
    wait_until_asleep,
)
from peers import LIBC, Child, become, call, connect, needs_cpython, needs_namespaces, needs_pidfd, needs_root

from peercred.__main__ import main

HOSTILE = [
    b"\x1b[2J", b"\x1b]0;title\x07", b"\x1bP+q\x1b\\", b"\x9b2J", "\x9b2J".encode(), b"\x08\x08", b"\x7f", b"\r", b"\n",
    b"\t", b"\x0e", "\u202eevil".encode(), "\u2066x".encode(), "\u200b".encode(), "\u2028".encode(), "\ufeff".encode(),
    "\U000e0041".encode(), "\u061c".encode(), b"\xff\xfe", b"\xed\xb2\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf",
]  # fmt: skip


def assert_safe(output):
    """Nothing is in it but printable characters and line ends."""
    assert all(character.isprintable() or character == "\n" for character in output), ascii(output)


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_path_is_escaped(in_process, hostile, place):
    """A hostile path is escaped in errors, in usage errors and in answers."""
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
        ):
            result = in_process(*arguments)
            assert result.returncode in (1, 2)
            assert result.stdout == ""
            assert_safe(result.stderr)
        server.bind(b"\0" + os.fsencode(abstract)[1:])
        server.listen()
        first, *rest = in_process(abstract).stdout.splitlines()
        assert first.startswith(f"@{place}\\")
        assert_safe(first)
        assert len(rest) == 8


@needs_pidfd
@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_program_name_is_escaped(server, in_process, hostile):
    """A hostile program name is escaped, and stays on its line."""
    with named(server, hostile) as child:
        output = in_process(as_argument(server)).stdout
        assert_safe(output)
        assert len(output.splitlines()) == 9
        program = proc_file(child.pid, "comm").removesuffix(b"\n").decode(errors="backslashreplace")
        assert json.loads(in_process("--json", as_argument(server)).stdout)["program"] == program


@needs_pidfd
def test_escapes_are_pythons(server, in_process):
    """Escapes are as in Python. In JSON, only what is not UTF-8 is escaped."""
    with named(server, b"\x1b[2J\xff\nroot"):
        assert r"program: \x1b[2J\xff\nroot" in in_process(as_argument(server)).stdout.splitlines()
        assert json.loads(in_process("--json", as_argument(server)).stdout)["program"] == "\x1b[2J\\xff\nroot"


@needs_pidfd
def test_command_line_is_escaped(server, in_process):
    """Hostile arguments are escaped. In JSON they stand unchanged."""
    words = ["\x1b]0;title\x07", "-c", "import sys; sys.stdin.read()", "\x1b[31mred\x07\n\x9b2J"]

    def listen():
        server.listen()
        stdin, hold = os.pipe()
        os.dup2(stdin, 0)
        os.set_inheritable(hold, True)
        os.execv(sys.executable, words)

    with Child(listen) as child:
        wait_until(lambda: words[-1].encode() in proc_file(child.pid, "cmdline"))
        output = in_process(as_argument(server)).stdout
        assert json.loads(in_process("--json", as_argument(server)).stdout)["command"] == words
        assert r"\x1b]0;title\x07" in output
        assert_safe(output)
        child.kill()


@needs_pidfd
def test_program_name_cannot_pose_as_another_column(door):
    """--listen quotes a program name that holds spaces."""
    # Each \1 is shown as four characters. So the rest would stand below UID.
    forged = b"\1\1\1\1 root (0)"

    def visit():
        Path("/proc/self/comm").write_bytes(forged)
        return connect(str(door)).detach()

    with listening(door) as command, Child(visit) as child:
        child.result()
        assert command.stdout.readline().split("\t")[2] == r"'\x01\x01\x01\x01 root (0)'"


@needs_namespaces
@pytest.mark.parametrize("hostile", [name for name in HOSTILE if name != b"\n"], ids=ascii)
def test_user_and_group_names_are_escaped(server, tmp_path, hostile, in_process):
    """Hostile user and group names are escaped, and stay on their lines."""

    def ask():
        call(lambda: become(uid=1234, gid=1234, groups=(1234,)) or server.listen())
        return in_process(as_argument(server)).stdout

    output = call_with_names(tmp_path, hostile, hostile, ask)
    assert_safe(output)
    assert len(output.splitlines()) == 9
    assert len(re.findall(r"\(1234\)$", output, re.MULTILINE)) == 3


# Runs the command, and says on standard error how much memory that took.
# (ru_maxrss counts that of the process before exec too.)
MEASURED = """
import re, sys
from peercred.__main__ import main
status = main()
with open("/proc/self/status") as file:
    print(int(re.search(r"VmHWM:\\s*(\\d+) kB", file.read())[1]) * 1024, file=sys.stderr)
sys.exit(status)
"""


def claim_arguments(size):
    """Say that `size` bytes of untouched memory are one's arguments."""
    libc = ctypes.CDLL(None)
    libc.sbrk.restype = ctypes.c_void_p
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    memory[size - 10] = 65  # or it would read as empty
    stat = proc_file("self", "stat").rpartition(b")")[2].split()
    code, data, stack, environ = (
        [int(stat[number - 3]) for number in numbers] for numbers in ((26, 27), (45, 46, 47), (28,), (50, 51))
    )  # numbers of proc_pid_stat(5)
    # struct prctl_mm_map: no auxiliary vector, no exe_fd.
    mm_map = struct.pack("11QQII", *code, *data, libc.sbrk(0), *stack, start, start + size, *environ, 0, 0, 2**32 - 1)
    PR_SET_MM, PR_SET_MM_MAP = 35, 14  # noqa: N806
    assert libc.prctl(PR_SET_MM, PR_SET_MM_MAP, ctypes.c_char_p(mm_map), ctypes.c_ulong(len(mm_map)), 0) == 0
    return memory


@needs_cpython("PyPy takes as much memory by itself")
@needs_root
@needs_pidfd
@pytest.mark.skipif(sys.maxsize < 2**32, reason="needs 64 bits, for the layout of struct prctl_mm_map")
def test_command_line_that_takes_no_memory(server):
    """A process that claims 60 MB of arguments does not make the command big.

    It needs neither memory nor a privilege for that.
    """
    size = 60 << 20

    def serve():
        become(uid=1001, gid=2001)
        LIBC.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which setuid(2) has cleared
        kept.append(claim_arguments(size))
        server.listen()

    kept = []
    with Child(serve) as child:
        child.result()
        result = subprocess.run(
            [sys.executable, "-c", MEASURED, "--json", as_argument(server)],
            capture_output=True,
            check=True,
            env=ENVIRONMENT,
        )
        with open(f"/proc/{child.pid}/cmdline", "rb") as file:
            assert len(file.read(1 << 20)) == 1 << 20  # the claim has been made
    assert json.loads(result.stdout)["command"][-1] == "..."
    assert len(result.stdout) < 1 << 20
    assert int(result.stderr) < size


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
    """The command runs no module from the current directory."""
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'planted')!r}, 'w').close()\n")
    command = [sys.executable, "-I", "-m", "peercred"]
    if how == "peercred":
        script = shutil.which("peercred", path=os.path.dirname(sys.executable))
        if script is None:
            pytest.skip(reason="needs the console script beside the interpreter, as in a virtual environment")
        command = [script]
    env = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("PYTHON")}
    result = subprocess.run([*command, *arguments], cwd=tmp_path, env=env, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert not (tmp_path / "planted").exists()


# Runs the command with this many descriptors left. Its modules are imported
# before, because Python could not open their files afterwards. It is a program
# of its own, because pytest has hooks that import modules too. The limit is
# restored at the end, where coverage writes a file.
LIMITED = """
import os, resource, sys
import peercred._command
from peercred.__main__ import main

spare = int(sys.argv.pop(1))
free = [fd for fd in range(100) if not os.path.exists(f"/proc/self/fd/{fd}")]
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (free[spare], limits[1]))
status = main()
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
sys.exit(status)
"""


@needs_cpython("PyPy may lack a descriptor to say what is wrong")
@pytest.mark.parametrize("spare", range(8))
def test_limit_on_descriptors(spare):
    """With too few descriptors left, the command works, or says so."""
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(spare), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    if result.returncode == 0:
        assert spare > 1, "it needs two sockets"
        assert json.loads(result.stdout)["uid"] == os.geteuid()
        assert result.stderr == ""
    else:
        assert spare < 7
        assert (result.returncode, result.stdout) == (1, "")
        assert re.fullmatch("peercred: Too many open files.*\n", result.stderr)


@needs_root
def test_limit_on_processes(in_process):
    """The command says so if it cannot start the child that it would show."""

    def inside():
        become(uid=123_456, gid=123_456)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        return in_process()

    result = call(inside)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"peercred: {os.strerror(errno.EAGAIN)}\n"


def test_many_clients(door, effort):
    """--listen shows each of many clients once, even if it has gone again."""
    number = 300 * effort
    with started("--listen", str(door), "--json") as command:
        wait_until(lambda: can_connect(door))
        assert json.loads(command.stdout.readline())["pid"] == os.getpid()

        def visit():
            for _ in range(number):
                connect(str(door)).close()

        with Child(visit) as first, Child(visit) as second:
            seen = [json.loads(command.stdout.readline())["pid"] for _ in range(2 * number)]
            first.result()
            second.result()
        assert sorted(set(seen)) == sorted([first.pid, second.pid])
        assert seen.count(first.pid) == seen.count(second.pid) == number
        terminate(command)
        assert command.stdout.read() == ""


def test_several_at_once_at_one_path(door, effort):
    """Of several commands that start at one path, one listens.

    The others fail, and leave its socket alone.
    """
    for _ in range(2 * effort):
        with contextlib.ExitStack() as stack:
            commands = [stack.enter_context(started("--listen", str(door))) for _ in range(3)]
            wait_until(lambda commands=commands: sum(command.poll() is not None for command in commands) >= 2)
            [listener] = [command for command in commands if command.poll() is None]
            wait_until(lambda: can_connect(door))
            assert int(listener.stdout.readline().split("\t")[1]) == os.getpid()
            for command in commands:
                if command is not listener:
                    assert command.returncode == 1
                    assert re.fullmatch(f"peercred: {door}: .+\n", command.stderr.read())
            terminate(listener)
            assert listener.stderr.read() == ""
        assert not door.exists()


@pytest.mark.parametrize("number", ENDING)
def test_signal_at_any_time(door, effort, number, monkeypatch):
    """A signal ends --listen at any time, and its socket is removed."""
    monkeypatch.setattr(sys, "argv", ["peercred", "--listen", str(door)])
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
        time.sleep(0.02 * step / (25 * effort))  # it listens after about 10 ms
        os.kill(pid, number)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (-number, 128 + number)
        assert not door.exists()


@pytest.mark.parametrize("number", ENDING)
def test_signal_while_the_answer_is_written(server, number):
    """A signal ends the command while its output blocks, without a message."""
    reader, writer = full_pipe()
    with open(reader, "rb"), started("--json", as_argument(server), stdout=writer) as command:
        os.close(writer)
        server.accept()[0].close()
        wait_until_asleep(command)
        command.send_signal(number)
        assert command.wait() == -number
        assert command.stderr.read() == ""
