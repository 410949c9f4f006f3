"""Servers that many clients of eight users connect to at the same time.

One server has a thread for each connection, and one a selector. They name each
client, and admit or refuse it by its own ids.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import socketserver
import struct
import threading
from collections import Counter

import pytest
from peers import DEADLINE, Child, become, connect, needs_root, outcome

import peercred
from peercred import AllowList, Cred

# The client's pid, and its effective uid and gid, as it reads them of itself.
HELLO = struct.Struct("iII")
# By what the list admits each of the eight users, if it does.
ADMITTED_BY = ["its uid", "its gid", "a group", "the last of many groups", None, None, None, None]
GROUPS = [(), (), (9_999_997, 9_999_998), tuple(range(200_000, 200_100)), (4,), tuple(range(100)), (), ()]
# It has the real and saved ids of all users too, and so of those to be refused.
ALLOWED = AllowList(
    uids={6000, *range(5000, 5008), *range(7000, 7008)},
    gids={8001, 9_999_998, 200_099, *range(5000, 5008), *range(7000, 7008), 9_999_999},
)


def become_user(number):
    become(
        uid=(5000 + number, 6000 + number, 7000 + number),  # real, effective and saved
        gid=(5000 + number, 8000 + number, 7000 + number),
        groups=GROUPS[number],
    )


class Judge:
    """Asks who a client is, and compares with what the client says itself."""

    def __init__(self):
        self.wrong, self.counts, self.lock = [], Counter(), threading.Lock()

    def judge(self, conn):
        """Read what the client says, and return the answer to it."""
        said = Cred(*HELLO.unpack(conn.recv(HELLO.size, socket.MSG_WAITALL)))
        verdict = outcome(ALLOWED.require, conn)
        read = outcome(peercred.read, conn)
        expected = said if ADMITTED_BY[said.uid - 6000] else (peercred.NotAllowedError, errno.EACCES)
        with self.lock:
            self.counts[said.uid, isinstance(verdict, Cred)] += 1
            if (verdict, read) != (expected, said):
                self.wrong.append((said, read, verdict))
        return b"in" if isinstance(verdict, Cred) else b"no"


@contextlib.contextmanager
def threading_server(path, judge):
    """socketserver's server, with a thread for each connection."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(judge.judge(self.request))

    class Server(socketserver.ThreadingUnixStreamServer):
        request_queue_size = 200
        daemon_threads = False

    with Server(path, Handler) as server:

        def serve():
            server.serve_forever(poll_interval=0.05)

        yield serve
        server.shutdown()


@contextlib.contextmanager
def selecting_server(path, judge):
    """A server with one thread and a selector for all connections."""
    with socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as selector:
        server.bind(path)
        server.listen(200)
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)
        stopped = threading.Event()

        def serve():
            try:
                while not stopped.is_set():
                    for key, _ in selector.select(0.05):
                        if key.fileobj is server:
                            with contextlib.suppress(BlockingIOError):
                                selector.register(server.accept()[0], selectors.EVENT_READ)
                        else:
                            selector.unregister(key.fileobj)
                            with key.fileobj as conn:
                                conn.sendall(judge.judge(conn))
            finally:
                stopped.set()

        yield serve
        stopped.set()


@needs_root
@pytest.mark.parametrize("serving", [threading_server, selecting_server])
def test_clients_of_eight_users(serving, place, effort):
    """However many connect at once, each client is judged by its own ids."""
    path, judge = str(place / "socket"), Judge()
    batches, at_once = 10 * effort, 5

    def visit(number):
        become_user(number)
        os.close(go)
        os.read(start, 1)
        verdicts = Counter()
        for _ in range(batches):
            clients = [connect(path) for _ in range(at_once)]
            for client in clients:
                client.sendall(HELLO.pack(os.getpid(), os.geteuid(), os.getegid()))
            for client in reversed(clients):
                verdicts[client.recv(10)] += 1
                client.close()
        return verdicts

    start, go = os.pipe()
    with serving(path, judge) as serve, contextlib.ExitStack() as stack:
        os.chmod(path, 0o666)
        children = [stack.enter_context(Child(lambda number=number: visit(number))) for number in range(8)]
        thread = threading.Thread(target=serve, daemon=True)  # after the forks
        thread.start()
        os.close(start)
        os.close(go)  # they begin together
        verdicts = [child.result() for child in children]
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert judge.wrong == []
    total = batches * at_once
    assert verdicts == [{b"in" if admitted else b"no": total} for admitted in ADMITTED_BY]
    assert judge.counts == {(6000 + number, bool(admitted)): total for number, admitted in enumerate(ADMITTED_BY)}
