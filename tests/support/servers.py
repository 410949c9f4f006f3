"""Servers in processes of their own, and clients of other users that ask them
who they are.

A test writes the program of a server, which answers each request with
`who(...)`: the pid, uid and gid that `peercred.read` gives there. `running`
starts it; `assert_names` calls on it twice and compares.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from peers import Child, become, connect
from readme import section

DEADLINE = 100  # seconds, for whatever waits
ROOT = os.geteuid() == 0
UIDS = (3_000_000_000, 1000) if ROOT else (os.geteuid(), os.geteuid())

SOCKET = "app.sock"

PRELUDE = """\
import asyncio, os, socket, ssl, sys
import peercred

def said(cred):
    return f"{cred.pid} {cred.uid} {cred.gid}"

def who(conn):
    return said(peercred.read(conn))

def tls(server):  # without certificates
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("aNULL:@SECLEVEL=0")
    return context
"""


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}, of the group integrations")


def handed(conn: str) -> str:
    """What README tells people to pass, once it is certain that README does."""
    assert f"`{conn}`" in section("Where is the connection?"), f"README does not name {conn}"
    return conn


@contextlib.contextmanager
def running(
    place: Path,
    program: str,
    *command: str,
    conn: str | None = None,
    name: str = SOCKET,
    ready: Callable[[], bool] = lambda: True,
    **files: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, once its socket accepts; and nothing of
    it is left afterwards.

    Args:
    place: Its working directory, where it makes its socket.
    program: The contents of app.py, after PRELUDE.
    command: What to run, with this Python; app.py itself by default.
    conn: What stands in README, and replaces CONN in the program.
    name: That of its socket.
    ready: What must be true before its socket can be trusted to accept.
    files: Other modules to write beside app.py.
    """
    program = PRELUDE + dedent(program)
    if conn is not None:
        assert "CONN" in program
        program = program.replace("CONN", handed(conn))
    for module, text in {"app": program, **files}.items():
        (place / f"{module}.py").write_text(text)
    with open(place / "log", "w+") as log:
        server = subprocess.Popen(
            [sys.executable, *(command or ["app.py"])],
            cwd=place,
            env={key: value for key, value in os.environ.items() if not key.startswith("COV")},  # nobody measures it
            umask=0,  # every user may connect
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_until(server, lambda: ready() and accepts(place / name))
            yield server
        except BaseException:
            end(server)
            sys.stdout.write(Path(log.name).read_text())
            raise
        end(server)


def wait_until(server: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert not has_ended(server), "the server has ended"
        assert time.monotonic() < deadline, "the server does not listen"
        time.sleep(0.01)


def accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        return client.connect_ex(str(path)) in (0, errno.EPROTOTYPE)  # the latter: a datagram socket is there


def has_ended(server: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended. It is not reaped, so no other has its number."""
    return os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end(server: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and end whatever is left of its session."""
    os.kill(server.pid, signal.SIGTERM)  # not terminate(), which would reap it
    deadline = time.monotonic() + 5
    while not has_ended(server) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


class Dial:
    """Connects to a socket as a user, when called.

    The kernel records the ids at connect(2). For the rest, a client is whoever
    runs the tests: perhaps only root may read what it imports.
    """

    def __init__(self, path: Path, uid: int) -> None:
        self.path = path
        self.uid = uid

    def __call__(self) -> socket.socket:
        with self.user():
            sock = connect(str(self.path))
        sock.settimeout(DEADLINE)
        return sock

    @contextlib.contextmanager
    def user(self) -> Iterator[None]:
        """Be that user, for a library that connects by itself."""
        if not ROOT:
            yield
            return
        become(uid=(self.uid, self.uid, 0), gid=(self.uid, self.uid, 0))
        try:
            yield
        finally:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)


Ask = Callable[[], str]
Client = Callable[[Dial], AbstractContextManager[Ask]]


def assert_names(path: Path, client: Client) -> None:
    """Two users at once, of two processes, are each told who they are.

    They are told so at once, and again when both have been.
    """

    def ask_twice(uid: int, other: socket.socket) -> list[str]:
        signal.alarm(DEADLINE)
        with client(Dial(path, uid)) as ask:
            first = ask()
            other.send(b"x")
            assert other.recv(1) == b"x"
            answers = [first, ask()]
            other.send(b"x")  # neither leaves before the other has its answers
            assert other.recv(1) == b"x"
            return answers

    one, two = socket.socketpair()
    with (
        Child(lambda: ask_twice(UIDS[0], one)) as first,
        Child(lambda: ask_twice(UIDS[1], two)) as second,
    ):
        one.close()
        two.close()
        answers = [first.result(), second.result()]
    gids = UIDS if ROOT else (os.getegid(), os.getegid())
    assert answers == [
        [f"{child.pid} {uid} {gid}"] * 2 for child, uid, gid in zip((first, second), UIDS, gids, strict=True)
    ]


def as_client(path: Path, use: Callable[[Dial], object], uid: int = UIDS[0]) -> object:
    """What `use` returns in a process that connects as that user."""

    def child() -> object:
        signal.alarm(DEADLINE)
        return use(Dial(path, uid))

    with Child(child) as client:
        return client.result()


def is_refused(dial: Dial) -> bool:
    """Whether the server closes the connection without a word."""
    with dial() as sock:
        try:
            return sock.recv(1) == b""
        except ConnectionResetError:
            return True


@contextlib.contextmanager
def lines(dial: Dial) -> Iterator[Ask]:
    """Sends a line, and receives one."""
    with dial() as sock, sock.makefile("rw") as file:

        def ask() -> str:
            file.write("who\n")
            file.flush()
            return file.readline().rstrip("\n")

        yield ask


def secure_lines(dial: Dial) -> AbstractContextManager[Ask]:
    """The same over TLS."""
    names: dict[str, Any] = {}
    exec(PRELUDE, names)
    return lines(lambda: names["tls"](server=False).wrap_socket(dial()))


def web(*, keep_alive: bool = True, path: str = "/") -> Client:
    """Asks by HTTP/1.1, over one connection if the server keeps it."""

    @contextlib.contextmanager
    def client(dial: Dial) -> Iterator[Ask]:
        used = []

        def dial_again() -> None:
            conn.sock = dial()
            used.append(conn.sock)

        def ask() -> str:
            conn.request("GET", path)
            with conn.getresponse() as response:
                body = response.read().decode()
                assert response.status == 200, body
            assert len(used) == 1 or not keep_alive, "the server has closed the connection"
            return body

        conn = http.client.HTTPConnection("localhost")
        conn.connect = dial_again  # type: ignore[method-assign]
        with contextlib.closing(conn):
            yield ask

    return client


@contextlib.contextmanager
def websocket(dial: Dial) -> Iterator[Ask]:
    """Sends a message over a WebSocket, and receives one."""
    from websockets.sync.client import connect as connect_websocket

    with connect_websocket("ws://localhost/ws", sock=dial(), open_timeout=DEADLINE, proxy=None) as ws:

        def ask() -> str:
            ws.send("who")
            answer = ws.recv(timeout=DEADLINE)
            assert isinstance(answer, str)
            return answer

        yield ask


@contextlib.contextmanager
def http2(dial: Dial) -> Iterator[Ask]:
    """Asks by HTTP/2, over one connection without TLS."""
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.events import DataReceived, StreamEnded

    conn = H2Connection(H2Configuration(header_encoding="utf-8"))
    with dial() as sock:
        conn.initiate_connection()

        def ask() -> str:
            stream = conn.get_next_available_stream_id()
            headers = {":method": "GET", ":path": "/", ":authority": "localhost", ":scheme": "http"}
            conn.send_headers(stream, [*headers.items()], end_stream=True)
            body = b""
            while True:
                sock.sendall(conn.data_to_send())
                data = sock.recv(65536)
                assert data, "the server has closed the connection"
                for event in conn.receive_data(data):
                    if isinstance(event, DataReceived):
                        body += event.data
                    elif isinstance(event, StreamEnded):
                        return body.decode()

        yield ask
