"""`peercred PATH` and plain `peercred`: who listens, asked of real servers in other processes and of other users."""

from __future__ import annotations

import array
import asyncio
import json
import os
import re
import socket
import sys
from pathlib import Path

import pytest
from command import (
    COMMAND,
    ENDING,
    ENVIRONMENT,
    KEYS,
    answered,
    as_argument,
    deadline,  # noqa: F401
    group,
    here,  # noqa: F401
    named,
    proc,
    refused,  # noqa: F401
    started,
    user,
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
    connect_soon,
    in_pid_namespace,
    needs_cpython,
    needs_namespaces,
    needs_passrights,
    needs_pidfd,
    needs_root,
    on_a_terminal,
    unshare,
)

from peercred._command.sockets import connect as connect_as_the_command
from peercred._libc import lib


@pytest.fixture
def daemon(place):
    """An asyncio server of another user, at a path that everyone may connect to."""
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
    """Pid, ids, groups, program and command line of the server are those in /proc. Ids have names if there are any."""
    child, path = daemon
    peer = json.loads(answered("--json", path))
    assert list(peer) == KEYS
    assert peer.pop("time")
    label = peer.pop("label")
    assert label is None or isinstance(label, str)
    assert peer == {
        "pid": child.pid,
        "program": proc(child.pid, "comm").decode().rstrip("\n"),
        "command": proc(child.pid, "cmdline").decode().split("\0")[:-1],
        "uid": 1001,
        "user": user(1001),
        "gid": 2001,
        "group": group(2001),
        "groups": [4, 27, 3_000_000_000],
        "alive": True,
    }


@needs_root
@needs_pidfd
def test_who_listens_for_people(daemon):
    """Without --json there is a line for each, with names before numbers."""
    child, path = daemon
    first, *lines = answered(path).splitlines()
    assert first == f"{path}: this process called listen(2)."
    assert [line.split(": ")[0] for line in lines] == [
        "pid", "program", "command", "user", "group", "groups", "label", "alive",
    ]  # fmt: skip
    assert f"pid: {child.pid}" in lines
    assert f"user: {named(user(1001), 1001)}" in lines
    assert f"groups: {', '.join(named(group(gid), gid) for gid in (4, 27, 3_000_000_000))}" in lines
    assert "alive: yes" in lines


@needs_root
def test_names(server):
    """The names of uid 0 and gid 0 are shown."""
    peer = json.loads(answered("--json", as_argument(server.getsockname().decode())))
    assert (peer["uid"], peer["user"], peer["gid"], peer["group"]) == (0, "root", 0, "root")


@needs_namespaces
def test_names_that_are_not_utf8(server, tmp_path):
    """A user's and a group's name of other bytes are escaped: the JSON is valid, without lone surrogates."""
    (tmp_path / "passwd").write_bytes(b"caf\xe9:x:1234:1234::/:/bin/sh\n")
    (tmp_path / "group").write_bytes(b"th\xe9:x:1234:\n")

    def inside():
        unshare(CLONE_NEWNS)
        assert LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0
        for name in ("passwd", "group"):
            bind_mount(tmp_path / name, Path("/etc", name))
        call(lambda: become(uid=1234, gid=1234) or server.listen())
        return answered("--json", as_argument(server.getsockname().decode()))

    peer = json.loads(call(inside))
    assert (peer["uid"], peer["gid"]) == (1234, 1234)
    assert (peer["user"], peer["group"]) == (r"caf\xe9", r"th\xe9")


def test_every_kind_of_listener(listener):
    """Stream and seqpacket sockets have an answer, at a path and abstract ones."""
    peer = json.loads(answered("--json", as_argument(os.fsdecode(listener.getsockname()))))
    assert peer["pid"] == os.getpid()


@needs_pidfd
def test_listener_that_has_ended(server):
    """Another process holds the socket now. No program is named, and a hint says how to find that process."""
    with Child(server.listen) as other:
        other.result()
    name = as_argument(server.getsockname().decode())
    lines = answered(name).splitlines()
    ended = "unknown: the process has ended"
    assert {f"pid: {other.pid}", f"program: {ended}", f"command: {ended}", "alive: no"} <= set(lines)
    assert "`ss -xlp`" in lines[-1]
    peer = json.loads(answered("--json", name))
    assert (peer["program"], peer["command"], peer["alive"]) == (None, None, False)


@needs_namespaces
def test_pid_1(server):
    """Pid 1 may listen for a service. A hint says how to find that."""

    def first():
        server.listen()
        return answered(as_argument(server.getsockname().decode())).splitlines()

    lines = in_pid_namespace(first)
    assert "pid: 1" in lines
    assert "`systemctl list-sockets`" in lines[-1]


@needs_namespaces
@needs_pidfd
def test_listener_in_another_pid_namespace(server):
    """Its pid and its program cannot be seen from a PID namespace of one's own, and the command says so."""
    lines = in_pid_namespace(lambda: answered(as_argument(server.getsockname().decode()))).splitlines()
    hidden = "unknown: /proc does not show this process"
    assert "pid: unknown: it is in a PID namespace that cannot be seen from this one" in lines
    assert {f"program: {hidden}", f"command: {hidden}", "alive: yes"} <= set(lines)


NO_OPTION = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>

/* getsockopt(2) of a kernel without one option. */
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
    """The environment of a process whose kernel lacks an option."""

    def without(option):
        return {**ENVIRONMENT, "LD_PRELOAD": str(preloadable(NO_OPTION.replace("OPTION", str(option))))}

    return without


def test_kernel_without_pidfd(server, without):
    """Before Linux 6.5 the program is unknown, and the command says why."""
    name = as_argument(server.getsockname().decode())
    lines = answered(name, env=without(lib.SO_PEERPIDFD)).splitlines()
    unknown = "unknown: needs Linux 6.5 or later"
    assert {f"pid: {os.getpid()}", f"program: {unknown}", f"command: {unknown}", f"alive: {unknown}"} <= set(lines)
    peer = json.loads(answered("--json", name, env=without(lib.SO_PEERPIDFD)))
    assert (peer["program"], peer["command"], peer["alive"]) == (None, None, None)


def test_kernel_without_groups(server, without):
    """Before Linux 4.13 the groups are unknown, which is not the same as none."""
    lines = answered(as_argument(server.getsockname().decode()), env=without(lib.SO_PEERGROUPS)).splitlines()
    assert "groups: unknown: needs Linux 4.13 or later" in lines


def test_no_label(server, without):
    """Where no security module labels sockets, there is no label: "none", not "unknown"."""
    name = as_argument(server.getsockname().decode())
    assert "label: none" in answered(name, env=without(socket.SO_PEERSEC)).splitlines()
    assert json.loads(answered("--json", name, env=without(socket.SO_PEERSEC)))["label"] is None


@needs_passrights
def test_no_descriptors_are_taken(server):
    """The server cannot send it a descriptor, which could keep it from ending for as long as the server likes."""
    with connect_as_the_command(server.getsockname(), 1), server.accept()[0] as conn, pytest.raises(PermissionError):
        conn.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [conn.fileno()]))])


def test_nothing_to_answer(place, refused):  # noqa: F811
    """A missing path, a regular file, a directory, a dead socket, a datagram socket, too long a path."""
    (place / "file").touch()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "dead"))
    assert "No such file" in refused(str(place / "missing"))
    assert "not a socket" in refused(str(place / "file"))
    assert "not a socket" in refused(str(place))
    assert "nobody listens there\n" in refused(str(place / "dead"))
    assert "nobody listens there\n" in refused("@" + str(place / "abstract"))
    assert "path too long" in refused(str(place / ("x" * 108)))
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as bound:
            bound.bind(str(place / kind.name))
            assert "bound but not listening" in refused(str(place / kind.name))


@needs_root
def test_no_permission(place, here):  # noqa: F811
    """A socket that the user may not connect to."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / "socket"))
        os.chmod(place / "socket", 0o600)
        server.listen()
        result = call(lambda: become(uid=1001, gid=2001) or here(str(place / "socket")))
    assert (result.returncode, result.stderr) == (1, f"peercred: {place}/socket: Permission denied\n")


@needs_cpython("PyPy makes listen(1) of listen(0)")
def test_full_backlog(place, kind, refused):  # noqa: F811
    """Connecting times out, and the command says why."""
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(str(place / "socket"))
        server.listen(0)
        with connect(str(place / "socket"), kind):
            assert "timed out" in refused("--timeout", "0.01", str(place / "socket"))


@needs_cpython("PyPy makes listen(1) of listen(0)")
@pytest.mark.parametrize("number", ENDING)
def test_signal_while_it_connects(place, number):
    """A signal that comes while the backlog is full ends the command by that signal, and without a traceback."""
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


@needs_pidfd
def test_hostile_names_are_escaped(server):
    """Neither a program's name nor its arguments write on the operator's terminal. JSON holds them unchanged."""
    hostile = "\x1b[31mred\x07\n\x9b2J"

    def listen():
        server.listen()
        Path("/proc/self/comm").write_bytes(b"\x1b[2J\xff\nroot")
        stdin, hold = os.pipe()
        os.dup2(stdin, 0)
        os.set_inheritable(hold, True)
        os.execv(sys.executable, ["\x1b]0;title\x07", "-c", "import sys; sys.stdin.read()", hostile])

    def renamed():
        server.listen()
        Path("/proc/self/comm").write_bytes(b"\x1b[2J\xff\nroot")

    name = as_argument(server.getsockname().decode())
    with Child(renamed) as child:
        child.result()
        output = answered(name)
        assert r"program: \x1b[2J\xff\nroot" in output.splitlines()
        assert json.loads(answered("--json", name))["program"] == "\x1b[2J\\xff\nroot"
        assert not re.search(r"[^\n\x20-\x7e]", output)
    with Child(listen) as child:
        wait_until(lambda: hostile.encode() in proc(child.pid, "cmdline"))
        output = answered(name)
        assert json.loads(answered("--json", name))["command"] == [
            "\x1b]0;title\x07",
            "-c",
            "import sys; sys.stdin.read()",
            hostile,
        ]
        assert r"\x1b]0;title\x07" in output
        assert not re.search(r"[^\n\x20-\x7e]", output)
        child.kill()


def test_terminal_is_aligned(server):
    """Values stand in one column, and there are no escape sequences."""
    output, status = on_a_terminal([*COMMAND, as_argument(server.getsockname().decode())])
    assert status == 0
    lines = output.splitlines()[1:9]  # a hint follows if the tests are process 1, as in a container
    assert len(lines) == 8
    for line in lines:
        assert re.fullmatch(r"[a-z]+: +[^ ].*", line)
        assert re.match(r"[a-z]+: +", line).end() == 10
    assert "\x1b" not in output


@needs_pidfd
def test_process_title(server):
    """A title that a program has written over its arguments is not followed by empty words."""

    def listen():
        server.listen()
        os.execv(sys.executable, ["server: ready", "-c", "import sys; sys.stdin.read()", *[""] * 30])

    stdin, hold = os.pipe()
    name = as_argument(server.getsockname().decode())
    with Child(lambda: os.dup2(stdin, 0) or listen()) as child:
        wait_until(lambda: b"ready" in proc(child.pid, "cmdline"))
        assert json.loads(answered("--json", name))["command"][-1] == "import sys; sys.stdin.read()"
        child.kill()
    os.close(stdin)
    os.close(hold)


def test_child_is_shown():
    """Without arguments the command shows a child of its own."""
    peer = json.loads(answered("--json"))
    assert peer["uid"] == os.geteuid()
    assert peer["alive"] in (True, None)  # None: a kernel without pidfds
    assert peer["command"] is None or "peercred" in peer["command"]
    first, second, *_ = answered().splitlines()
    pid = re.match(r"Process (\d+), a child of this one, has connected", first)[1]
    assert second == f"pid: {pid}"
