"""A worked example: the service manager's end of sd_notify, which believes its own child only; the client is PyPI's."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest

from peercred import messages

pytestmark = pytest.mark.skipif(find_spec("sdnotify") is None, reason="needs sdnotify, of the extra dev")

SERVICE = """
import os, sdnotify, sys
notifier = sdnotify.SystemdNotifier(debug=True)
notifier.notify("STATUS=starting")
notifier.notify(f"READY=1\\nMAINPID={os.getpid()}")
sys.stdin.read()
"""

IMPOSTOR = """
import sdnotify
sdnotify.SystemdNotifier(debug=True).notify("READY=1\\nMAINPID=1")
"""


class Manager:
    """Starts a service, and waits until it says that it is ready.

    Whoever can reach the socket can write to it, so each message is asked for its sender. That the pid be the child's
    is enough: it is our own child, which we have not reaped, so no other process can have its number. (Of a process
    that is not one's own child, the pidfd would have to be asked.) Root could claim the number, and is trusted anyway.
    """

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        messages.enable(self.sock)  # before bind(): no message is without a stamp
        self.sock.bind(path)
        self.env = {**os.environ, "NOTIFY_SOCKET": path}

    def start(self, program):
        return subprocess.Popen([sys.executable, "-c", program], env=self.env, stdin=subprocess.PIPE)

    def wait(self, service):
        """What the service has told until READY=1; and what else came in."""
        state, ignored = {}, []
        ended = os.pidfd_open(service.pid)
        try:
            while state.get("READY") != "1":
                if self.sock not in select.select([self.sock, ended], [], [])[0]:
                    raise ChildProcessError("the service has ended, and was not ready")
                message = messages.receive(self.sock, 4096)
                if message.cred is None or message.cred.pid != service.pid or message.flags & socket.MSG_TRUNC:
                    ignored.append(message)
                    continue
                state.update(line.split("=", 1) for line in message.data.decode().splitlines())
            return state, ignored
        finally:
            os.close(ended)


@pytest.fixture
def manager(place):
    manager = Manager(str(place / "notify"))
    with manager.sock:
        yield manager


def test_ready(manager):
    """The child's messages are believed, and its MAINPID is its own."""
    with manager.start(SERVICE) as service:
        state, ignored = manager.wait(service)
    assert state == {"STATUS": "starting", "READY": "1", "MAINPID": str(service.pid)}
    assert ignored == []
    assert service.returncode == 0


def test_impostor(manager):
    """Another process's READY=1 is not, though it came first, from the same user and by the same client."""
    with manager.start(IMPOSTOR) as impostor:
        pass
    with manager.start(SERVICE) as service:
        state, [ignored] = manager.wait(service)
    assert state["MAINPID"] == str(service.pid)
    assert (ignored.data, ignored.cred.pid) == (b"READY=1\nMAINPID=1", impostor.pid)


def test_service_that_ends(manager):
    """Nor does an impostor make a service ready that has ended."""
    with manager.start("") as service:
        with manager.start(IMPOSTOR):
            pass
        with pytest.raises(ChildProcessError):
            manager.wait(service)
