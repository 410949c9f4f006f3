"""What the README shows works as it stands there."""

from __future__ import annotations

import asyncio
import doctest
import errno
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from unittest import mock

import pytest
from peers import (
    Child,
    become,
    call,
    connect,
    connect_soon,
    exec_cat,
    in_pid_namespace,
    needs_namespaces,
    needs_passrights,
    needs_pidfd,
    needs_root,
    on_a_terminal,
    outcome,
    stranger_with,
)
from questions import QUESTIONS
from readme import README, blocks, example, section

import peercred
from peercred import messages
from peercred._command.peer import COLUMNS

SERVER, ASYNCIO = example("server.accept()"), example("start_unix_server")


@needs_root
@pytest.mark.parametrize("code", [SERVER, ASYNCIO], ids=["plain", "asyncio"])
def test_server(place, code):
    """The server of user 1001 lets only its own user in, not even root.

    Its file keeps others out, until that is opened.
    """
    os.chmod(place, 0o777)
    path = str(place / "door.sock")
    code = compile(code, "README.md", "exec")

    def serve():
        import asyncio  # noqa: F401, while this process may read the standard library

        os.umask(0)
        os.chdir(place)
        become(uid=1001, gid=1001)
        exec(code, {})

    def visit(uid):
        become(uid=uid, gid=uid)
        with connect(path) as sock:
            return sock.makefile("rb").read()

    with Child(serve) as server:
        with connect_soon(path, server) as sock:
            assert sock.recv(100) == b""
        assert call(lambda: outcome(visit, 1002)) == (PermissionError, errno.EACCES)
        os.chmod(path, 0o666)
        answers = {uid: call(lambda uid=uid: visit(uid)) for uid in (1001, 1002, 0)}
        server.kill()
    assert answers == {1001: b"welcome, 1001\n", 1002: b"", 0: b""}


def test_example_prints_as_it_goes(place):
    """A service's log has each refusal at once, though it is no terminal."""
    code = SERVER.replace("{os.geteuid()}", "{4321}")
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=place,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=subprocess.PIPE,
    ) as process:
        try:
            with connect_soon(str(place / "door.sock"), process):
                assert f"uid {os.geteuid()}" in process.stdout.readline().decode()
        finally:
            process.kill()


@needs_passrights
def test_open_to_all_users(place, monkeypatch):
    """With the call that README names, a client can attach nothing."""
    (call,) = re.findall(r"`(messages\.enable\(server, .*?\))`", README)
    setup, _, _ = SERVER.partition("    while True:")
    code = setup.replace("    server.listen()", f"    {call}\n    server.listen()\n    attach(server)")
    attempts = []

    def attach(server):
        with connect("door.sock") as client, server.accept()[0]:
            attempts.append(outcome(lambda: messages.send(client, b"x", fds=[client])))

    monkeypatch.chdir(place)
    for text, expected in ((code, (PermissionError, errno.EPERM)), (code.replace(call, "pass"), 1)):
        exec(compile(text, "README.md", "exec"), {"messages": messages, "attach": attach})
        assert attempts.pop() == expected


@pytest.mark.parametrize("code", [SERVER, ASYNCIO], ids=["plain", "asyncio"])
def test_server_starts_again(place, code):
    """The server starts though a former run has left its file."""
    path = str(place / "door.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    code = compile(code, "README.md", "exec")

    def serve():
        os.chdir(place)
        exec(code, {})

    with Child(serve) as server:
        with connect_soon(path, server) as sock:
            assert sock.recv(100) == b"welcome, %d\n" % os.geteuid()
        server.kill()


def test_testing():
    """`permits` decides, and a socketpair answers, as the README says."""
    (call,) = re.findall(r"`(allowed\.permits\(.*\))`", section("Testing your own server"))
    for gids, expected in (({27}, True), ({1001}, True), ({28}, False)):
        allowed = peercred.AllowList(uids={0, 1000}, gids=gids)
        assert eval(call, {"allowed": allowed, "peercred": peercred}) is expected
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peercred.read(ours) == peercred.Cred(os.getpid(), os.geteuid(), os.getegid())


def test_testing_with_mocks():
    """The two names that README tells people to patch can be patched."""
    text = section("Testing your own server")
    (given,) = re.findall(r"`return_value=(.*?)`", text)
    peer = eval(given, {"peercred": peercred})
    first, second = re.findall(r"`(peercred\.read|peercred\.AllowList\.require)`", text)
    with mock.patch(first, return_value=peer), mock.patch(second, return_value=peer):
        assert peercred.read(mock.Mock()) == peercred.AllowList().require(mock.Mock()) == peer


def test_settings():
    """The line for a settings file makes a list of names and numbers."""
    (expression,) = re.findall(r"`uids=(\[.*\])`", README)
    assert eval(expression, {"text": "0 alice\n4321"}) == [0, "alice", 4321]


@pytest.mark.skipif(find_spec("mypy") is None, reason="needs mypy, of the group dev")
def test_examples_are_typed(tmp_path):
    """mypy --strict finds nothing in the Python examples.

    Except annotations that they leave out. uvicorn's base class is a variable.
    """
    checked = [text for text in blocks("python") if "uvicorn" not in text]
    assert len(checked) == len(blocks("python")) - 1
    files = [tmp_path / f"example{number}.py" for number in range(len(checked))]
    for file, text in zip(files, checked, strict=True):
        file.write_text(text)
    relaxed = ["--allow-untyped-defs", "--allow-untyped-calls", "--no-warn-return-any"]
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        *relaxed,
        "--check-untyped-defs",
        "--cache-dir",
        tmp_path / "cache",
    ]
    result = subprocess.run([*command, *files], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout.startswith("Success"), result.stdout + result.stderr


def test_receiver_in_asyncio(datagrams):
    """The receiver waits for a message, takes one, and leaves no reader."""
    receiver, sender = datagrams
    receiver.setblocking(False)
    names = {}
    exec(compile(example("loop.add_reader"), "README.md", "exec"), names)

    async def main():
        waiting = asyncio.ensure_future(names["receive"](receiver))
        await asyncio.sleep(0)
        assert not waiting.done()
        messages.send(sender, b"1")
        messages.send(sender, b"2")
        first = await waiting
        assert not asyncio.get_running_loop().remove_reader(receiver)
        return first, await names["receive"](receiver)

    first, second = asyncio.run(asyncio.wait_for(main(), 60))
    assert (first.data, second.data) == (b"1", b"2")
    assert first.cred == peercred.Cred(os.getpid(), os.getuid(), os.getgid())


def program(conn):
    names = {}
    exec(compile(example("def program(conn)"), "README.md", "exec"), names)
    return names["program"](conn)


@needs_pidfd
def test_program_of_a_living_peer(server):
    """The recipe shows the peer's program, after an exec too."""
    with Child(lambda: exec_cat(connect(server.getsockname()))):
        conn, _ = server.accept()
        with conn:
            conn.send(b"x")
            assert conn.recv(1) == b"x"  # it is cat by now
            assert program(conn) == os.path.realpath(shutil.which("cat"))


@needs_pidfd
@needs_namespaces
def test_program_of_a_dead_peer_is_not_its_successors(server):
    """The recipe does not take a stranger's program for the dead peer's.

    The stranger has its number.
    """

    def inside():
        with Child(lambda: connect(server.getsockname()).detach()) as peer:
            conn, _ = server.accept()
            peer.result()
        with conn, stranger_with(peer.pid) as stranger:
            assert peercred.read(conn).pid == stranger.pid
            assert os.readlink(f"/proc/{stranger.pid}/exe")  # what a look at /proc alone would say
            with pytest.raises(ProcessLookupError):
                program(conn)

    in_pid_namespace(inside)


def test_examples():
    """The interactive examples, with whatever ids are this process's own."""
    own = f"Cred(pid={os.getpid()}, uid={os.geteuid()}, gid={os.getegid()})"
    text = "\n".join(blocks("pycon")).replace("Cred(pid=2002, uid=1000, gid=1000)", own)
    assert own in text
    test = doctest.DocTestParser().get_doctest(text, {}, "README.md", "README.md", 0)
    result = doctest.DocTestRunner().run(test, clear_globs=False)
    test.globs["conn"].close()
    test.globs["other"].close()
    assert result.attempted > 0
    assert result.failed == 0


def test_error_table():
    """The README has every error of the package, and no name too many."""
    named = set(re.findall(r"`peercred\.(\w+)", README))
    assert named >= {name for name in peercred.__all__ if name.endswith("Error")}
    assert named <= {*peercred.__all__, "messages"}


def test_main_job():
    """`peercred`, at the end of the first command, shows a process."""
    assert blocks("sh")[0].endswith(".venv/bin/peercred\n")
    first, *lines = main_on_a_terminal()
    pid = re.search(r": process (\d+), a child of this one, called listen\(2\)\.$", first)[1]
    assert re.fullmatch(rf"pid: +{pid}", lines[0])


def main_on_a_terminal(*arguments):
    output, status = on_a_terminal([sys.executable, "-m", "peercred", *arguments])
    assert status == 0
    return output.splitlines()


def test_output_of_the_command(server):
    """The README's example has the lines of the command."""
    command, first, *shown = blocks("console")[0].splitlines()
    path = command.removeprefix("$ peercred ")
    name = "@" + server.getsockname()[1:].decode()
    real_first, *real = main_on_a_terminal(name)
    assert real_first == first.replace(path, name)
    real = real[: len(shown)]  # a hint follows if the tests are process 1, as in a container
    assert [re.match(r"\w+: +", line)[0] for line in real] == [re.match(r"\w+: +", line)[0] for line in shown]


def test_output_of_listen():
    """The columns of the README's example are where the command puts them."""
    command, head, line = blocks("console")[1].splitlines()
    assert command.startswith("$ peercred --listen ")
    columns = iter(re.split(r" {2,}", line))
    widths = [*COLUMNS.values()][:-1]
    assert head == "  ".join([*(f"{name:<{width}}" for name, width in zip(COLUMNS, widths)), [*COLUMNS][-1]])  # noqa: B905
    assert line == "  ".join([*(f"{next(columns):<{width}}" for width in widths), next(columns)])


def test_commands_are_the_two():
    """One command runs the main job, one the tests.

    Each starts from nothing.
    """
    assert len(blocks("sh")) == 2
    for command in blocks("sh"):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert blocks("sh")[1].endswith("/pytest\n")


@needs_root
def test_messages(place):
    """The receiver of datagrams prints only what its own user sends.

    A former run has left its socket.
    """
    os.chmod(place, 0o777)
    path = str(place / "log.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as former:
        former.bind(path)
    output, output_end = os.pipe()

    def serve():
        os.chdir(place)
        become(uid=1001, gid=1001)
        os.dup2(output_end, 1)
        exec(
            compile(example("log.sock"), "README.md", "exec"),
            {"print": lambda text, flush: os.write(1, text.encode())},
        )

    def send(uid):
        become(uid=uid, gid=uid)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"from %d" % uid, path)

    with Child(serve) as server:
        os.close(output_end)
        connect_soon(path, server, socket.SOCK_DGRAM).close()
        os.chmod(path, 0o666)
        for uid in (1002, 0, 1001):  # the last one is the server's own user
            with Child(lambda uid=uid: send(uid)) as sender:
                sender.result()
        assert os.read(output, 1000).decode() == f"uid 1001, pid {sender.pid}: b'from 1001'"
        server.kill()
    os.close(output)


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_table_of_questions(question):
    """The first table has each function, with its option and its Linux."""
    since = "any" if question.name == "read" else question.since
    row = rf"^\| `peercred\.{question}\(conn\)` \| .* \| `{question.option}` \| {re.escape(since)} \|$"
    assert len(re.findall(row, README, re.MULTILINE)) == 1
