"""Whole programs, to be copied. Each is run as it stands, and by the command
that its docstring gives.
"""

from __future__ import annotations

import ast
import http.client
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from peers import Child, become, needs_root
from servers import DEADLINE, UIDS, as_client, is_refused, needs, running

PROGRAMS = Path(__file__).parent / "programs"
ALLOWED, REFUSED = os.geteuid(), UIDS


def started(place, name, socket_name="app.sock", *options):
    """A program under the first command of its docstring."""
    source = (PROGRAMS / f"{name}.py").read_text()
    docstring = ast.get_docstring(ast.parse(source))
    words = shlex.split(next(line for line in docstring.splitlines() if line.startswith("    ")))
    while "=" in words[0]:  # the environment, which the test has set
        words.pop(0)
    command = words[1:] if words[0] == "python" else ["-m", *words]
    return running(place, "", *command, *options, name=socket_name, **{name: source})


def get(path="/"):
    """Asks for a path: the status and the body."""

    def ask(dial):
        with dial() as sock, http.client.HTTPResponse(sock) as response:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            response.begin()
            return response.status, response.read().decode()

    return ask


@needs("flask", "gunicorn")
def test_flask(place):
    """The user that runs the application is admitted."""
    with started(place, "flask_app", "app.sock", "--no-control-socket"):
        assert as_client(place / "app.sock", get(), ALLOWED) == (200, f"welcome, {ALLOWED}\n")
        assert as_client(place / "app.sock", get("/nothing"), ALLOWED)[0] == 404


@needs_root
@needs("flask", "gunicorn")
def test_flask_refuses(place):
    """Every other user is told 403, whatever path it asks for."""
    with started(place, "flask_app", "app.sock", "--no-control-socket"):
        for uid in REFUSED:
            for path in ("/", "/nothing", "/static/nothing"):
                status, body = as_client(place / "app.sock", get(path), uid)
                assert status == 403
                assert "welcome" not in body
    assert f"uid {REFUSED[0]}" in (place / "log").read_text()


@needs("fastapi", "uvicorn")
def test_fastapi(place):
    """The user that runs the application is admitted."""
    with started(place, "fastapi_app"):
        status, body = as_client(place / "app.sock", get(), ALLOWED)
        assert (status, json.loads(body)) == (200, {"welcome": ALLOWED})


@needs_root
@needs("fastapi", "uvicorn")
def test_fastapi_refuses(place):
    """Every other user is hung up on, whether it says something or not."""

    def ask_for_docs(dial):
        with dial() as sock:
            try:
                sock.sendall(b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return sock.recv(1000)
            except (BrokenPipeError, ConnectionResetError):
                return b""

    with started(place, "fastapi_app"):
        assert as_client(place / "app.sock", get("/docs"), ALLOWED)[0] == 200
        for uid in REFUSED:
            assert as_client(place / "app.sock", is_refused, uid)
            assert as_client(place / "app.sock", ask_for_docs, uid) == b""
    log = (place / "log").read_text()
    assert f"uid {REFUSED[0]}" in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["flask", "--app", "flask_app", "run", "--host", "unix://{place}/app.sock"], marks=needs("flask")),
        pytest.param(["uvicorn", "--uds", "app.sock", "fastapi_app:app"], marks=needs("fastapi", "uvicorn")),
    ],
    ids=["flask", "fastapi"],
)
def test_other_servers(place, command):
    """Where the peer is not to be had, nobody is admitted."""
    files = {path.stem: path.read_text() for path in PROGRAMS.glob("*_app.py")}
    with running(place, "", "-m", *(word.format(place=place) for word in command), **files):
        assert as_client(place / "app.sock", get(), ALLOWED)[0] == 500


@pytest.fixture
def receiver(place, monkeypatch):
    """The receiver's socket, open to every user, and what it has printed."""
    path = place / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as former:
        former.bind(str(path))  # it is in the way
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # a user does not have it
    with started(place, "notify_receiver", path.name):
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o666)
        yield path, (place / "log").read_text


def notify_as(uid, path, *states):
    """Sends these as a process of that user, and then waits at a barrier."""

    def client():
        signal.alarm(DEADLINE)
        if uid != os.geteuid():
            become(uid=uid, gid=uid)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(str(path))
            for state in states:
                sock.send(state)
            ours, theirs = os.pipe()
            socket.send_fds(sock, [b"BARRIER=1"], [theirs])
        os.close(theirs)
        closed = select.poll()
        closed.register(ours, 0)
        return closed.poll(DEADLINE * 1000) == [(ours, select.POLLHUP)]

    with Child(client) as child:
        assert child.result(), "the receiver keeps the barrier"
        return child.pid


def test_notify(receiver):
    """At the barrier, all that was told before has been printed."""
    path, printed = receiver
    states = [f"STATUS={number}" for number in range(100)]
    pid = notify_as(ALLOWED, path, *map(str.encode, states), b"READY=1\nMAINPID=1", b"STATUS=\x1b[2J\xff")
    assert printed().splitlines() == [
        f"uid {ALLOWED}, pid {pid}: {state!r}" for state in [*states, "READY=1", "MAINPID=1", "STATUS=\x1b[2J\\xff"]
    ]


def test_notify_too_much(receiver):
    """A message that was cut off is not taken for a whole one."""
    path, printed = receiver
    notify_as(ALLOWED, path, b"STATUS=" + b"x" * 4096)
    assert printed().startswith("too long: Cred(pid=")
    assert "STATUS" not in printed()


@needs_root
def test_notify_refuses(receiver):
    """Other users' messages do not count, and their barriers do not hang."""
    path, printed = receiver
    for uid in REFUSED:
        pid = notify_as(uid, path, b"READY=1")
        assert f"refused: Cred(pid={pid}, uid={uid}, gid={uid})\n" in printed()
    assert "READY" not in printed()


@pytest.mark.skipif(shutil.which("systemd-notify") is None, reason="needs systemd-notify")
def test_systemd_notify(receiver):
    """systemd-notify returns once its message has been printed."""
    path, printed = receiver
    command = ["systemd-notify", "--ready", "--status=serving"]
    subprocess.run(command, env={**os.environ, "NOTIFY_SOCKET": str(path)}, check=True, timeout=DEADLINE)
    assert {line.split(": ")[1] for line in printed().splitlines()} == {"'READY=1'", "'STATUS=serving'"}


@needs_root
@pytest.mark.skipif(shutil.which("systemd-notify") is None, reason="needs systemd-notify")
def test_systemd_notify_of_another_user(receiver):
    """What another user's says is refused, and it does not wait for ever."""
    path, printed = receiver

    def client():
        signal.alarm(DEADLINE)
        become(uid=REFUSED[1], gid=REFUSED[1])
        env = {**os.environ, "NOTIFY_SOCKET": str(path)}
        return subprocess.run(["systemd-notify", "--ready"], env=env, timeout=DEADLINE).returncode

    with Child(client) as child:
        assert child.result() == 0
    assert {line.split("(")[0] for line in printed().splitlines()} == {"refused: Cred"}
