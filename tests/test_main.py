"""The command `peercred`, as a subprocess, against real servers and clients in other processes and of other users."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import io
import json
import os
import pty
import pwd
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from peers import Child, become, call, connect, connect_soon, needs_pidfd, needs_root, on_a_terminal

from peercred.__main__ import main

COMMAND = [sys.executable, "-m", "peercred"]
KEYS = ["time", "pid", "program", "command", "uid", "user", "gid", "group", "groups", "label", "alive"]


def run(*arguments):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def answered(*arguments):
    result = run(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def refused(*arguments):
    """Exit code 1, nothing on stdout, and the one line on stderr that is given back."""
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"peercred: .+\n", result.stderr)
    return result.stderr


def user(uid):
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name


def group(gid):
    with contextlib.suppress(KeyError):
        return grp.getgrgid(gid).gr_name


def named(name, number):
    return f"{name} ({number})" if name else str(number)


def proc(pid, name):
    return Path(f"/proc/{pid}/{name}").read_bytes()


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
    """Pid, ids, groups, program and command line of the server, as /proc has them; names where there are any."""
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
    """The same, to be read: a line each, names before numbers, and what the answer means."""
    child, path = daemon
    first, *lines = answered(path).splitlines()
    assert first == f"{path}: this process called listen(2); under socket activation, that is pid 1."
    assert [line.split(": ")[0] for line in lines] == [
        "pid", "program", "command", "user", "group", "groups", "label", "alive",
    ]  # fmt: skip
    assert f"pid: {child.pid}" in lines
    assert f"user: {named(user(1001), 1001)}" in lines
    assert f"groups: {', '.join(named(group(gid), gid) for gid in (4, 27, 3_000_000_000))}" in lines
    assert "alive: yes" in lines


@needs_root
def test_names(server):
    """uid 0 and gid 0 have names."""
    peer = json.loads(answered("--json", "@" + server.getsockname()[1:].decode()))
    assert (peer["uid"], peer["user"], peer["gid"], peer["group"]) == (0, "root", 0, "root")


def test_every_kind_of_listener(listener):
    """Stream and seqpacket, at a path and abstract."""
    name = os.fsdecode(listener.getsockname())
    peer = json.loads(answered("--json", f"@{name[1:]}" if name.startswith("\0") else name))
    assert peer["pid"] == os.getpid()


@needs_pidfd
def test_listener_that_has_died(server):
    """Whoever called listen() is gone, and somebody else holds the socket: no program is named."""
    with Child(server.listen) as other:
        other.result()
    lines = answered("@" + server.getsockname()[1:].decode()).splitlines()
    assert f"pid: {other.pid}" in lines
    assert {"program: unknown", "command: unknown", "alive: no"} <= set(lines)
    peer = json.loads(answered("--json", "@" + server.getsockname()[1:].decode()))
    assert (peer["program"], peer["command"], peer["alive"]) == (None, None, False)


def test_nothing_to_answer(place):
    """A missing path, a regular file, a directory, a dead socket, a datagram socket, too long a path."""
    (place / "file").touch()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "dead"))
    assert "No such file" in refused(str(place / "missing"))
    assert "not a socket" in refused(str(place / "file"))
    assert "not a socket" in refused(str(place))
    assert "nobody listens there" in refused(str(place / "dead"))
    assert "nobody listens there" in refused("@" + str(place / "abstract"))
    assert "path too long" in refused(str(place / ("x" * 108)))
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as bound:
            bound.bind(str(place / kind.name))
            assert "bound but not listening" in refused(str(place / kind.name))


def main_here(*arguments):
    """The command in this process: of another user, for whom the interpreter may be out of reach."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())),
        contextlib.redirect_stderr(io.StringIO()) as error,
    ):
        patch.setattr(sys, "argv", ["peercred", *arguments])
        return main(), error.getvalue()


@needs_root
def test_no_permission(place):
    """A socket that the user may not connect to."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / "socket"))
        os.chmod(place / "socket", 0o600)
        server.listen()
        status, error = call(lambda: become(uid=1001, gid=2001) or main_here(str(place / "socket")))
    assert (status, error) == (1, f"peercred: {place}/socket: Permission denied\n")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_full_backlog(place, kind):
    """Times out, and says why."""
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(str(place / "socket"))
        server.listen(0)
        with connect(str(place / "socket"), kind):
            assert "timed out" in refused("--timeout", "0.01", str(place / "socket"))


def test_interrupted_while_it_waits(place, monkeypatch):
    """Ctrl-C on a full backlog: exit code 1, and no traceback."""

    def interrupt(_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("time.sleep", interrupt)  # where it waits, and not a moment before
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / "socket"))
        server.listen(0)
        with connect(str(place / "socket")):
            assert main_here("--timeout", "60", str(place / "socket")) == (1, "")


@needs_pidfd
def test_hostile_names_are_escaped(server):
    """Neither a program's name nor its arguments write on the operator's terminal; JSON holds them unchanged."""
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

    name = "@" + server.getsockname()[1:].decode()
    with Child(renamed) as child:
        child.result()
        output = answered(name)
        assert r"program: \x1b[2J\xff\nroot" in output.splitlines()
        assert json.loads(answered("--json", name))["program"] == "\x1b[2J\\xff\nroot"
        assert not re.search(r"[^\n\x20-\x7e]", output)
    with Child(listen) as child:
        while hostile.encode() not in proc(child.pid, "cmdline"):
            assert os.waitpid(child.pid, os.WNOHANG) == (0, 0)
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
    assert r"\x1b[31m" in refused("/\x1b[31m")


@contextlib.contextmanager
def listening(path, *arguments, stdout=subprocess.PIPE):
    """The command with --listen, and a file to read its lines from; ended by SIGTERM, if it has not ended before."""
    with subprocess.Popen(
        [*COMMAND, "--listen", str(path), *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True
    ) as command:
        try:
            name = f"\0{path[1:]}" if str(path).startswith("@") else str(path)
            connect_soon(name, command).close()  # its line is the first
            yield command
        finally:
            command.terminate()


@needs_root
@needs_pidfd
def test_listen_shows_everyone(place):
    """A line per connection as they come, of the very processes."""
    path = place / "door"

    def visit(uid, gid, groups):
        become(uid=uid, gid=gid, groups=groups)
        return connect(str(path)).detach()

    with listening(path, "--mode", "666") as command:
        assert int(command.stdout.readline().split("\t")[1]) == os.getpid()
        for ids in ((1001, 2001, (4, 27)), (3_000_000_000, 2002, ()), (0, 0, (5,))):
            with Child(lambda ids=ids: visit(*ids)) as child:
                child.result()
                time, pid, program, uid, gid, *groups = command.stdout.readline().rstrip("\n").split("\t")
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", time)
                assert int(pid) == child.pid
                assert program == proc(child.pid, "comm").decode().rstrip("\n")
                assert (uid, gid) == (named(user(ids[0]), ids[0]), named(group(ids[1]), ids[1]))
                assert groups == [",".join(map(str, ids[2])) or "-"]


def test_listen_json(place):
    """One object per line, with the same keys."""
    with listening(place / "door", "--json") as command:
        for _ in range(2):
            peer = json.loads(command.stdout.readline())
            assert list(peer) == KEYS
            assert (peer["pid"], peer["uid"]) == (os.getpid(), os.geteuid())
            connect(str(place / "door")).close()


@pytest.mark.parametrize(("arguments", "mode"), [([], 0o600), (["--mode", "666"], 0o666), (["--mode", "0750"], 0o750)])
def test_listen_mode(place, arguments, mode):
    """Whatever the umask, the file has the mode that was asked for, and else 0600."""
    with listening(place / "door", *arguments):
        assert stat.S_IMODE(os.lstat(place / "door").st_mode) == mode
        assert stat.S_ISSOCK(os.lstat(place / "door").st_mode)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 2])
def test_listen_ends_and_removes_its_socket(place, number, times):
    """By Ctrl-C, SIGTERM and a closed terminal, also twice: exit code 0, nothing on stderr, and no file left."""
    with listening(place / "door") as command:
        for _ in range(times):
            command.send_signal(number)
        assert command.wait() == 0
        assert command.stderr.read() == ""
    assert not (place / "door").exists()


def test_signal_that_is_ignored_stays_ignored(place):
    """Under nohup a closed terminal does not end it."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening(place / "door") as command:
            command.stdout.readline()
            command.send_signal(signal.SIGHUP)
            connect(str(place / "door")).close()
            assert command.stdout.readline()
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_listen_removes_no_others_socket(place):
    """A file that has taken the place of its own stays."""
    with listening(place / "door") as command:
        (place / "door").unlink()
        (place / "door").write_text("another's")
        command.terminate()
        assert command.wait() == 0
    assert (place / "door").read_text() == "another's"


def test_listen_replaces_a_dead_socket_only(place):
    """Neither a file, a directory, a link, nor a socket that anyone has bound, listening or not."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "dead"))
    (place / "file").write_text("precious")
    (place / "link").symlink_to(place / "dead")
    for name in ("file", "link", "."):
        assert "is no socket, and stays as it is" in refused("--listen", str(place / name))
    assert (place / "file").read_text() == "precious"
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        path = place / kind.name
        with socket.socket(socket.AF_UNIX, kind) as alive:
            alive.bind(str(path))
            before = os.lstat(path)
            assert str(path) in refused("--listen", str(path))
            if kind != socket.SOCK_DGRAM:
                alive.listen()
                assert "already in use" in refused("--listen", str(path))
            assert os.path.samestat(before, os.lstat(path))
    with listening(place / "dead") as command:
        assert command.poll() is None
    assert (place / "link").is_symlink()
    assert f"{place}/missing/door: No such file" in refused("--listen", str(place / "missing" / "door"))
    assert f"{place}/file/door: Not a directory" in refused("--listen", str(place / "file" / "door"))


def test_listen_abstract(place):
    """An abstract socket has no file."""
    with listening(f"@{place}/door") as command:
        assert int(command.stdout.readline().split("\t")[1]) == os.getpid()
    assert list(place.iterdir()) == []


def test_reader_that_has_seen_enough(place):
    """`peercred --listen | head`: ends without a word."""
    with listening(place / "door") as command:
        command.stdout.close()
        while command.poll() is None:
            with contextlib.suppress(OSError):
                connect(str(place / "door")).close()
        assert command.returncode == 0
        assert command.stderr.read() == ""


def test_terminal_is_aligned(server):
    """Values stand in one column, and there are no escape sequences."""
    output, status = on_a_terminal([*COMMAND, "@" + server.getsockname()[1:].decode()])
    assert status == 0
    lines = output.splitlines()[1:]
    assert len(lines) == 8
    for line in lines:
        assert re.fullmatch(r"[a-z]+: +[^ ].*", line)
        assert re.match(r"[a-z]+: +", line).end() == 10
    assert "\x1b" not in output


def test_listen_on_a_terminal(place):
    """A head line, and columns below it."""
    ours, theirs = pty.openpty()
    with listening(place / "door", stdout=theirs):
        os.close(theirs)
        output = b""
        while output.count(b"\n") < 2:
            output += os.read(ours, 4096)
    os.close(ours)
    head, line = output.decode().splitlines()
    assert head.split() == ["TIME", "PID", "PROGRAM", "UID", "GID", "GROUPS"]
    assert line[head.index("PID") :].split()[0] == str(os.getpid())
    assert line[head.index("UID") :].startswith(f"{named(user(os.geteuid()), os.geteuid())} ")


def test_child_is_shown():
    """Without arguments: a child of its own, which can be seen to have the installation's interpreter."""
    peer = json.loads(answered("--json"))
    assert peer["uid"] == os.geteuid()
    assert peer["command"] is None or "s.connect" in peer["command"][2]
    first, second, *_ = answered().splitlines()
    pid = re.match(r"Process (\d+), a child of this one, has connected", first)[1]
    assert second == f"pid: {pid}"


def test_process_title(server):
    """A title that a program has written over its arguments is not followed by empty words."""

    def listen():
        server.listen()
        os.execv(sys.executable, ["server: ready", "-c", "import sys; sys.stdin.read()", *[""] * 30])

    stdin, hold = os.pipe()
    name = "@" + server.getsockname()[1:].decode()
    with Child(lambda: os.dup2(stdin, 0) or listen()) as child:
        while b"ready" not in proc(child.pid, "cmdline"):
            assert os.waitpid(child.pid, os.WNOHANG) == (0, 0)
        if json.loads(answered("--json", name))["alive"]:
            assert json.loads(answered("--json", name))["command"][-1] == "import sys; sys.stdin.read()"
        child.kill()
    os.close(stdin)
    os.close(hold)


def test_without_standard_output():
    """Closed, or a device that is full: one line on stderr, and exit code 1."""
    for redirection, words in ((">&-", "no standard output"), (">/dev/full", "No space left")):
        for arguments in ("", "--json", "--version"):
            command = f"{shlex.join(COMMAND)} {arguments} {redirection}"
            result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
            assert result.returncode == 1
            assert re.fullmatch(rf"peercred: .*{words}.*\n", result.stderr)


def test_usage_is_escaped():
    """A file's name that the shell has put on the command line does not write on the terminal."""
    result = run("a", "b\x1b[2J")
    assert result.returncode == 2
    assert "\x1b" not in result.stderr
    assert r"b\x1b[2J" in result.stderr


def test_help_and_version():
    """--help explains, --version tells, and the command is installed as `peercred`."""
    assert "socket activation" in answered("--help")
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
    result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: peercred")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_another_platform():
    """Where there is no Linux: one line, no traceback, exit code 1; without Unix sockets, pwd and grp too."""
    program = (
        "import socket, sys; sys.platform = 'plan9'; sys.modules.update(pwd=None, grp=None); del socket.AF_UNIX; "
        "from peercred.__main__ import main; sys.exit(main())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"peercred: .*'plan9'\n", result.stderr)
