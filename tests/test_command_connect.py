"""`peercred PATH`, which shows who listens, and `peercred` without a path.

The servers are real processes, also of other users.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
from command import (
    COMMAND,
    ENDING,
    ENVIRONMENT,
    KEYS,
    as_argument,
    call_with_names,
    error_of_fixture,  # noqa: F401
    group_name,
    in_process_fixture,  # noqa: F401
    leave_dead_socket,
    output_of,
    proc_file,
    shown_group,
    shown_user,
    started,
    user_name,
    wait_until,
    wait_until_asleep,
)
from peers import (
    SO_PEERGROUPS,
    SO_PEERPIDFD,
    Child,
    become,
    call,
    connect,
    connect_soon,
    in_pid_namespace,
    needs_cpython,
    needs_namespaces,
    needs_passrights,
    needs_pidfd,
    needs_root,
    on_a_terminal,
)

from peercred._command.sockets import connected


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

    A hint says how to find the process that has the socket now.
    """
    with Child(server.listen) as other:
        other.result()
    name = as_argument(server)
    lines = output_of(name).splitlines()
    ended = "unknown: the process has ended"
    assert {f"pid: {other.pid}", f"program: {ended}", f"command: {ended}", "alive: no"} <= set(lines)
    assert "`ss -xlp`" in lines[-1]
    peer = json.loads(output_of("--json", name))
    assert (peer["program"], peer["command"], peer["alive"]) == (None, None, False)


@needs_namespaces
def test_pid_1(server):
    """If process 1 listens, a hint says how to find the service behind it."""

    def first():
        server.listen()
        return output_of(as_argument(server)).splitlines()

    lines = in_pid_namespace(first)
    assert "pid: 1" in lines
    assert "`systemctl list-sockets`" in lines[-1]


@needs_namespaces
@needs_pidfd
def test_listener_in_another_pid_namespace(server):
    """The command says why a server in another PID namespace has no pid."""
    lines = in_pid_namespace(lambda: output_of(as_argument(server))).splitlines()
    hidden = "unknown: /proc does not show this process"
    assert "pid: unknown: it is in a PID namespace that cannot be seen from this one" in lines
    assert {f"program: {hidden}", f"command: {hidden}", "alive: yes"} <= set(lines)


NO_OPTION = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>

/* getsockopt(2) as on a kernel that lacks OPTION. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");

    if (level == SOL_SOCKET && option == OPTION)
        return errno = ENOPROTOOPT, -1;
    return real(fd, level, option, value, length);
}
"""


@pytest.fixture
def without(preloadable):
    """A function that makes an environment in which the kernel lacks an option.

    The library preloaded there answers for the kernel.
    """

    def without(option):
        return {**ENVIRONMENT, "LD_PRELOAD": str(preloadable(NO_OPTION.replace("OPTION", str(option))))}

    return without


def test_kernel_without_pidfd(server, without):
    """Before Linux 6.5, the command says why it does not know the program."""
    name = as_argument(server)
    lines = output_of(name, env=without(SO_PEERPIDFD)).splitlines()
    unknown = "unknown: needs Linux 6.5 or later"
    assert {f"pid: {os.getpid()}", f"program: {unknown}", f"command: {unknown}", f"alive: {unknown}"} <= set(lines)
    peer = json.loads(output_of("--json", name, env=without(SO_PEERPIDFD)))
    assert (peer["program"], peer["command"], peer["alive"]) == (None, None, None)


def test_kernel_without_groups(server, without):
    """Before Linux 4.13, the groups are shown as unknown, not as none."""
    lines = output_of(as_argument(server), env=without(SO_PEERGROUPS)).splitlines()
    assert "groups: unknown: needs Linux 4.13 or later" in lines


def test_no_label(server, without):
    """If no security module labels sockets, the label is shown as "none"."""
    name = as_argument(server)
    assert "label: none" in output_of(name, env=without(socket.SO_PEERSEC)).splitlines()
    assert json.loads(output_of("--json", name, env=without(socket.SO_PEERSEC)))["label"] is None


@needs_passrights
def test_no_descriptors_are_taken(server):
    """The server cannot send the command a descriptor.

    Closing a descriptor can block for as long as its sender likes.
    """
    with connected(server.getsockname(), 1), server.accept()[0] as conn, pytest.raises(PermissionError):
        conn.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [conn.fileno()]))])


def test_path_where_nobody_listens(place, error_of):
    """The error says why a path has no answer."""
    (place / "file").touch()
    leave_dead_socket(place / "dead")
    assert "No such file" in error_of(str(place / "missing"))
    assert "not a socket" in error_of(str(place / "file"))
    assert "not a socket" in error_of(str(place))
    assert "nobody listens there\n" in error_of(str(place / "dead"))
    assert "nobody listens there\n" in error_of("@" + str(place / "abstract"))
    assert "path too long" in error_of(str(place / ("x" * 108)))
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as bound:
            bound.bind(str(place / kind.name))
            assert "bound but not listening" in error_of(str(place / kind.name))


@needs_root
def test_no_permission(place, in_process):
    """The error says that the user may not connect to the socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / "socket"))
        os.chmod(place / "socket", 0o600)
        server.listen()
        result = call(lambda: become(uid=1001, gid=2001) or in_process(str(place / "socket")))
    assert (result.returncode, result.stderr) == (1, f"peercred: {place}/socket: Permission denied\n")


@needs_cpython("PyPy makes listen(1) of listen(0)")
def test_full_backlog(place, kind, error_of):
    """--timeout ends the attempt to connect while the backlog is full."""
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(str(place / "socket"))
        server.listen(0)
        with connect(str(place / "socket"), kind):
            assert "timed out" in error_of("--timeout", "0.01", str(place / "socket"))


@needs_cpython("PyPy makes listen(1) of listen(0)")
@pytest.mark.parametrize("number", ENDING)
def test_signal_while_it_connects(place, number):
    """A signal ends the command while it connects, without a message."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / "socket"))
        server.listen(0)
        with (
            connect(str(place / "socket")),
            started("--timeout", "60", str(place / "socket")) as command,
        ):
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


@needs_pidfd
def test_hostile_program_name_is_escaped(server):
    """A hostile program name does not write on the operator's terminal."""

    def listen():
        server.listen()
        Path("/proc/self/comm").write_bytes(b"\x1b[2J\xff\nroot")

    with Child(listen) as child:
        child.result()
        output = output_of(as_argument(server))
        assert r"program: \x1b[2J\xff\nroot" in output.splitlines()
        assert json.loads(output_of("--json", as_argument(server)))["program"] == "\x1b[2J\\xff\nroot"
        assert not re.search(r"[^\n\x20-\x7e]", output)


@needs_pidfd
def test_hostile_command_line_is_escaped(server):
    """Hostile arguments do not write on the operator's terminal.

    In JSON they stand unchanged.
    """
    words = ["\x1b]0;title\x07", "-c", "import sys; sys.stdin.read()", "\x1b[31mred\x07\n\x9b2J"]

    def listen():
        server.listen()
        stdin, hold = os.pipe()
        os.dup2(stdin, 0)
        os.set_inheritable(hold, True)
        os.execv(sys.executable, words)

    with Child(listen) as child:
        wait_until(lambda: words[-1].encode() in proc_file(child.pid, "cmdline"))
        output = output_of(as_argument(server))
        assert json.loads(output_of("--json", as_argument(server)))["command"] == words
        assert r"\x1b]0;title\x07" in output
        assert not re.search(r"[^\n\x20-\x7e]", output)
        child.kill()


def test_terminal_is_aligned(server):
    """On a terminal the values are aligned, and nothing is coloured."""
    output, status = on_a_terminal([*COMMAND, as_argument(server)])
    assert status == 0
    lines = output.splitlines()[1:9]  # a hint follows if the tests are process 1, as in a container
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


def test_child_is_shown():
    """Without arguments, the command shows a child of its own."""
    peer = json.loads(output_of("--json"))
    assert peer["uid"] == os.geteuid()
    assert peer["alive"] in (True, None)  # None: a kernel without pidfds
    assert peer["command"] is None or "peercred" in peer["command"]
    first, second, *_ = output_of().splitlines()
    pid = re.match(r"Process (\d+), a child of this one, has connected", first)[1]
    assert second == f"pid: {pid}"
