"""`peercred PATH`, which shows who listens, and `peercred` without a path.

The servers are real processes, also of other users.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from command import (
    COMMAND,
    ENDING,
    ENVIRONMENT,
    KEYS,
    as_argument,
    call_with_names,
    error_line,
    full_pipe,
    group_name,
    leave_dead_socket,
    output_of,
    proc_file,
    run,
    shown_group,
    shown_user,
    started,
    user_name,
    wait_until,
    wait_until_asleep,
)
from peers import (
    DEADLINE,
    LIBC,
    SO_PEERGROUPS,
    SO_PEERPIDFD,
    Child,
    become,
    call,
    connect_soon,
    fill_backlog,
    in_pid_namespace,
    needs_cpython,
    needs_namespaces,
    needs_passrights,
    needs_pidfd,
    needs_root,
    on_a_terminal,
    state,
    stranger_with,
)
from seccomp import needs_seccomp, refuse_option

from peercred._command import connect as module
from peercred._command.connect import connected

# What is shown of a process that cannot be seen.
UNKNOWN = "unknown: /proc does not show this process, or Linux is older than 6.5"


@pytest.fixture
def daemon(place):
    """A server of another user, written with asyncio, and its path."""
    path = str(place / "socket")

    def serve():
        os.chmod(place, 0o777)
        become(uid=1001, gid=2001, groups=(4, 27, 3_000_000_000))

        async def run():
            async with await asyncio.start_unix_server(lambda reader, writer: writer.close(), path) as server:
                os.chmod(path, 0o666)
                await server.serve_forever()

        asyncio.run(run())

    with Child(serve) as child:
        connect_soon(path, child).close()
        yield child, path
        child.kill()


@needs_root
@needs_pidfd
def test_who_listens(daemon):
    """`peercred --json PATH` shows the server as /proc does."""
    child, path = daemon
    peer = json.loads(output_of("--json", path))
    assert list(peer) == KEYS
    assert peer.pop("time")
    label = peer.pop("label")
    assert label is None or isinstance(label, str)
    assert peer == {
        "pid": child.pid,
        "program": proc_file(child.pid, "comm").decode().rstrip("\n"),
        "command": proc_file(child.pid, "cmdline").decode().split("\0")[:-1],
        "uid": 1001,
        "user": user_name(1001),
        "gid": 2001,
        "group": group_name(2001),
        "groups": [4, 27, 3_000_000_000],
        "alive": True,
    }


@needs_root
@needs_pidfd
def test_who_listens_as_text(daemon):
    """`peercred PATH` writes a line for each fact, with names of ids."""
    child, path = daemon
    first, *lines = output_of(path).splitlines()
    assert first == f"{path}: this process called listen(2)."
    assert [line.split(": ")[0] for line in lines] == [
        "pid", "program", "command", "user", "group", "groups", "label", "alive",
    ]  # fmt: skip
    assert f"pid: {child.pid}" in lines
    assert f"user: {shown_user(1001)}" in lines
    assert f"groups: {', '.join(map(shown_group, (4, 27, 3_000_000_000)))}" in lines
    assert "alive: yes" in lines


@needs_root
def test_names_of_root(server):
    """Uid 0 and gid 0 are shown as "root" too."""
    peer = json.loads(output_of("--json", as_argument(server)))
    assert (peer["uid"], peer["user"], peer["gid"], peer["group"]) == (0, "root", 0, "root")


@needs_namespaces
def test_names_that_are_not_utf8(server, tmp_path):
    """User and group names that are not UTF-8 are escaped in the JSON."""

    def ask():
        call(lambda: become(uid=1234, gid=1234) or server.listen())
        return output_of("--json", as_argument(server))

    peer = json.loads(call_with_names(tmp_path, b"caf\xe9", b"th\xe9", ask))
    assert (peer["uid"], peer["gid"]) == (1234, 1234)
    assert (peer["user"], peer["group"]) == (r"caf\xe9", r"th\xe9")


def test_every_kind_of_listener(listener):
    """The command answers for stream and seqpacket sockets at any address."""
    peer = json.loads(output_of("--json", as_argument(listener)))
    assert peer["pid"] == os.getpid()


@needs_pidfd
def test_listener_that_has_ended(server):
    """If the process that called listen(2) has ended, no program is named.

    The command says how to find the process that has the socket now.
    """
    with Child(server.listen) as other:
        other.result()
    name = as_argument(server)
    lines = output_of(name).splitlines()
    ended = "unknown: the process has ended"
    assert {f"pid: {other.pid}", f"program: {ended}", f"command: {ended}"} <= set(lines)
    assert lines[-1] == "alive: no: `ss -xlp` names who has the socket now"
    peer = json.loads(output_of("--json", name))
    assert (peer["program"], peer["command"], peer["alive"]) == (None, None, False)


@needs_namespaces
@needs_pidfd
def test_listener_in_another_pid_namespace(server):
    """The command says why a server in another PID namespace has no pid."""
    lines = in_pid_namespace(lambda: output_of(as_argument(server))).splitlines()
    assert "pid: unknown: it is in a PID namespace that cannot be seen from this one" in lines
    assert {f"program: {UNKNOWN}", f"command: {UNKNOWN}", f"alive: {UNKNOWN}"} <= set(lines)


@pytest.fixture
def without(server, in_process):
    """A function that runs the command where the kernel lacks an option.

    The option may fail in another way too.
    """

    def without(option, *arguments, error=errno.ENOPROTOOPT):
        return call(lambda: refuse_option(option, error) or in_process(*arguments, as_argument(server)))

    return without


@needs_seccomp
def test_kernel_without_pidfd(without):
    """Before Linux 6.5, the command says why it does not know the program."""
    lines = without(SO_PEERPIDFD).stdout.splitlines()
    assert {f"pid: {os.getpid()}", f"program: {UNKNOWN}", f"command: {UNKNOWN}", f"alive: {UNKNOWN}"} <= set(lines)
    peer = json.loads(without(SO_PEERPIDFD, "--json").stdout)
    assert (peer["program"], peer["command"], peer["alive"]) == (None, None, None)


@needs_seccomp
def test_listener_that_the_kernel_cannot_name(without):
    """From Linux 6.5 to 6.15, there is no pidfd of a process that has ended."""
    peer = json.loads(without(SO_PEERPIDFD, "--json", error=errno.EINVAL).stdout)
    assert (peer["program"], peer["command"], peer["alive"]) == (None, None, False)


@needs_seccomp
def test_kernel_without_groups(without):
    """Before Linux 4.13, the groups are shown as unknown, not as none."""
    assert "groups: unknown: needs Linux 4.13 or later" in without(SO_PEERGROUPS).stdout.splitlines()


NO_COMMAND_LINE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <sys/types.h>

/* openat(2) where a security module hides the command line. */
#define OPENAT(name) \
    int name(int directory, const char *path, int flags, mode_t mode) \
    { \
        int (*real)(int, const char *, int, mode_t) = dlsym(RTLD_NEXT, #name); \
        return strcmp(path, "cmdline") ? real(directory, path, flags, mode) : (errno = EACCES, -1); \
    }
OPENAT(openat)
OPENAT(openat64)
"""


@needs_pidfd
def test_command_line_that_may_not_be_read(server, preloadable):
    """The command shows what it may see of a process, and no more."""
    env = {**ENVIRONMENT, "LD_PRELOAD": str(preloadable(NO_COMMAND_LINE))}
    program = proc_file(os.getpid(), "comm").decode().rstrip("\n")
    peer = json.loads(output_of("--json", as_argument(server), env=env))
    assert (peer["program"], peer["command"], peer["alive"]) == (program, None, True)
    assert f"command: {UNKNOWN}" in output_of(as_argument(server), env=env).splitlines()


@needs_seccomp
@pytest.mark.parametrize("error", [errno.ENOPROTOOPT, errno.ENODATA])
def test_no_label(without, error):
    """If no security module labels the socket, the label is "none"."""
    assert "label: none" in without(socket.SO_PEERSEC, error=error).stdout.splitlines()
    assert json.loads(without(socket.SO_PEERSEC, "--json", error=error).stdout)["label"] is None


@needs_seccomp
@pytest.mark.parametrize("option", [SO_PEERGROUPS, SO_PEERPIDFD, socket.SO_PEERSEC])
def test_other_failure(server, without, option):
    """Any other failure of a question ends the command with its reason."""
    error = error_line(without(option, error=errno.EIO))
    assert error.startswith(f"peercred: {as_argument(server)}: {os.strerror(errno.EIO)}")


@needs_passrights
def test_no_descriptors_are_taken(server):
    """The server cannot send the command a descriptor.

    Closing a descriptor can block for as long as its sender likes.
    """
    with connected(server.getsockname()), server.accept()[0] as conn, pytest.raises(PermissionError):
        conn.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [conn.fileno()]))])


def test_path_where_nobody_listens(place, error_of):
    """The error says why a path has no answer."""
    (place / "file").touch()
    leave_dead_socket(place / "dead")
    assert "No such file" in error_of(str(place / "missing"))
    for path in (place / "file", place, place / "dead", f"@{place}/abstract"):
        assert error_of(str(path)) == f"peercred: {path}: nobody listens there, or it is not a socket\n"
    assert "path too long" in error_of(str(place / ("x" * 108)))
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as bound:
            bound.bind(str(place / kind.name))
            assert f"{place / kind.name}: nobody listens there" in error_of(str(place / kind.name))


@needs_root
def test_no_permission(place, in_process):
    """The error says that the user may not connect to the socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / "socket"))
        os.chmod(place / "socket", 0o600)
        server.listen()
        result = call(lambda: become(uid=1001, gid=2001) or in_process(str(place / "socket")))
    assert (result.returncode, result.stderr) == (1, f"peercred: {place}/socket: Permission denied\n")


@pytest.fixture
def full(place, kind):
    """A listening socket of each type whose backlog is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        server.bind(str(place / "socket"))
        server.listen(0)
        fill_backlog(server, stack)
        yield server


def test_backlog_that_stays_full(full, error_of, monkeypatch):
    """The command gives up after some seconds if the backlog stays full."""
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    assert "timed out" in error_of(as_argument(full))


def test_backlog_that_gets_room(full, in_process, monkeypatch):
    """The command waits for room in a full backlog, and then connects."""
    waits = []

    def sleep(seconds, sleep=time.sleep):
        waits.append(seconds)
        sleep(seconds)
        if len(waits) == 3:
            full.accept()[0].close()

    monkeypatch.setattr(time, "sleep", sleep)
    result = in_process("--json", as_argument(full))
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["uid"] == os.geteuid()
    assert len(waits) == 3


@pytest.mark.parametrize("number", ENDING)
def test_signal_while_it_connects(full, number):
    """A signal ends the command while it connects, without a message."""
    with started(as_argument(full)) as command:
        wait_until_asleep(command)
        command.send_signal(number)
        assert command.wait() == -number
        assert command.stderr.read() == ""


def test_no_address(server, in_process):
    """The command connects without an address, which Linux might give it."""
    in_process(as_argument(server))
    conn, address = server.accept()
    conn.close()
    assert address == ""


@needs_cpython("PyPy does not tell that a signal is ignored")
def test_ctrl_c_that_is_ignored_stays_ignored(server, in_process):
    """A shell starts background jobs so that Ctrl-C does not end them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    in_process(as_argument(server))
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_terminal_is_aligned(server):
    """On a terminal the values are aligned, and nothing is coloured."""
    output, status = on_a_terminal([*COMMAND, as_argument(server)])
    assert status == 0
    lines = output.splitlines()[1:]
    assert len(lines) == 8
    for line in lines:
        assert re.fullmatch(r"[a-z]+: +[^ ].*", line)
        assert re.match(r"[a-z]+: +", line).end() == 10
    assert "\x1b" not in output


@needs_pidfd
def test_process_title(server):
    """The empty words that follow a process title are not shown.

    A program that writes a title over its arguments leaves them behind.
    """

    def listen():
        server.listen()
        os.execv(sys.executable, ["server: ready", "-c", "import sys; sys.stdin.read()", *[""] * 30])

    stdin, hold = os.pipe()
    name = as_argument(server)
    with Child(lambda: os.dup2(stdin, 0) or listen()) as child:
        wait_until(lambda: b"ready" in proc_file(child.pid, "cmdline"))
        assert json.loads(output_of("--json", name))["command"][-1] == "import sys; sys.stdin.read()"
        child.kill()
    os.close(stdin)
    os.close(hold)


def test_zombie(server):
    """A process that has ended, but was not reaped, is not alive."""
    with Child(server.listen) as child:
        child.result()
        child.end()
        peer = json.loads(output_of("--json", as_argument(server)))
    assert (peer["pid"], peer["program"], peer["command"]) == (child.pid, None, None)
    assert peer["alive"] in (False, None)  # None: a kernel without pidfds


@needs_pidfd
def test_process_whose_first_thread_has_ended(server):
    """A process lives on without its first thread.

    /proc says that it is a zombie then.
    """

    def serve():
        server.listen()
        Path("/proc/self/comm").write_text("headless")
        threading.Thread(target=time.sleep, args=(DEADLINE,)).start()
        LIBC.pthread_exit(None)

    with Child(serve) as child:
        wait_until(lambda: state(f"/proc/{child.pid}") == "Z")
        peer = json.loads(output_of("--json", as_argument(server)))
        child.kill()
    assert (peer["pid"], peer["program"], peer["alive"]) == (child.pid, "headless", True)


@needs_namespaces
@needs_pidfd
def test_another_process_with_its_pid(server):
    """A process that has the number of the listener now is not shown."""

    def inside():
        with Child(server.listen) as child:
            child.result()
            child.reap()
        with stranger_with(child.pid):
            return child.pid, output_of("--json", as_argument(server))

    pid, output = in_pid_namespace(inside)
    peer = json.loads(output)
    assert (peer["pid"], peer["program"], peer["command"], peer["alive"]) == (pid, None, None, False)


def test_child_is_shown():
    """Without arguments, the command shows a child of its own."""
    peer = json.loads(output_of("--json"))
    assert peer["uid"] == os.geteuid()
    assert peer["alive"] in (True, None)  # None: a kernel without pidfds
    assert peer["command"] is None or "peercred" in peer["command"]
    first, second, *_ = output_of().splitlines()
    pid = re.fullmatch(r"@\w+: process (\d+), a child of this one, called listen\(2\)\.", first)[1]
    assert second == f"pid: {pid}"


def test_child_when_sigchld_is_ignored():
    """The self-test works if SIGCHLD is ignored, as some parents leave it.

    The kernel reaps children at once then, and their numbers are free.
    """
    peer = json.loads(output_of("--json", preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)))
    assert peer["uid"] == os.geteuid()


NO_LISTEN = r"""
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* listen(2) that fails, or that kills its process. */
int listen(int fd, int backlog)
{
    if (getenv("DIE"))
        _exit(1);
    return errno = EIO, -1;
}
"""


@pytest.mark.parametrize("how", [{}, {"DIE": "1"}], ids=["fails", "dies"])
def test_child_that_cannot_listen(preloadable, how):
    """The self-test says so if its child cannot listen, or dies."""
    result = run("--json", env={**ENVIRONMENT, "LD_PRELOAD": str(preloadable(NO_LISTEN)), **how})
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.endswith("nobody listens there, or it is not a socket\n")


def test_child_does_not_outlive_its_parent():
    """If the self-test is killed, its child ends too."""
    reader, writer = full_pipe()
    with open(reader, "rb") as file, started("--json", stdout=writer) as command:
        os.close(writer)
        wait_until(lambda: proc_file(command.pid, f"task/{command.pid}/children"))
        command.kill()
        command.wait()
        assert set(file.read()) == {ord("-")}  # until the child has closed its standard output
