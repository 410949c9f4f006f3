"""A worked example: the service manager's end of sd_notify.

The clients are PyPI's sdnotify and systemd's own.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest
from peers import Child, become, needs_passrights, needs_root

from peercred import Cred, messages

needs_sdnotify = pytest.mark.skipif(find_spec("sdnotify") is None, reason="needs sdnotify, of the group dev")
needs_systemd_notify = pytest.mark.skipif(shutil.which("systemd-notify") is None, reason="needs systemd-notify")

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

    Whoever can reach the socket can write to it, so each message is asked for
    its sender. The child's pid is enough, because it is our own child, which we
    have not reaped. No other process can have its number. Of other processes,
    the pidfd would have to be asked. Root could claim the number, and is
    trusted anyway.
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


@needs_sdnotify
def test_ready(manager):
    """The child's messages are believed, and its MAINPID is its own."""
    with manager.start(SERVICE) as service:
        state, ignored = manager.wait(service)
    assert state == {"STATUS": "starting", "READY": "1", "MAINPID": str(service.pid)}
    assert ignored == []
    assert service.returncode == 0


@needs_sdnotify
def test_impostor(manager):
    """Another process's READY=1 is not believed, even if it came first."""
    with manager.start(IMPOSTOR) as impostor:
        pass
    with manager.start(SERVICE) as service:
        state, [ignored] = manager.wait(service)
    assert state["MAINPID"] == str(service.pid)
    assert (ignored.data, ignored.cred.pid) == (b"READY=1\nMAINPID=1", impostor.pid)


@needs_sdnotify
def test_service_that_ends(manager):
    """An impostor does not make a service ready that has ended."""
    with manager.start("") as service:
        with manager.start(IMPOSTOR):
            pass
        with pytest.raises(ChildProcessError):
            manager.wait(service)


def notify(manager, *arguments):
    return subprocess.Popen(["systemd-notify", *arguments], env=manager.env, stderr=subprocess.PIPE)


@pytest.fixture
def listening(manager):
    """The manager, with a deadline for what it waits for."""
    manager.sock.settimeout(60)
    return manager


@needs_systemd_notify
def test_barrier(listening):
    """systemd-notify waits until the pipe of BARRIER=1 is closed."""
    with notify(listening, "--ready") as client:
        assert messages.receive(listening.sock, 4096).data == b"READY=1"
        with messages.receive(listening.sock, 4096, max_fds=1) as message:
            assert (message.data, len(message.fds), message.flags) == (b"BARRIER=1", 1, 0)
            assert client.poll() is None
        assert client.wait(60) == 0


@needs_systemd_notify
def test_barrier_without_room(listening):
    """Without `max_fds` the pipe of BARRIER=1 is dropped at once."""
    with notify(listening, "--ready") as client:
        assert messages.receive(listening.sock, 4096).data == b"READY=1"
        message = messages.receive(listening.sock, 4096)
        assert (message.data, message.fds, message.flags) == (b"BARRIER=1", (), socket.MSG_CTRUNC)
        assert client.wait(60) == 0


@needs_systemd_notify
@needs_passrights
def test_refused_barrier(listening):
    """With `fds=False` systemd-notify fails, unless --no-block is given."""
    messages.enable(listening.sock, fds=False)
    with notify(listening, "--ready") as client:
        assert messages.receive(listening.sock, 4096).data == b"READY=1"
        assert client.wait(60) != 0
        assert b"Operation not permitted" in client.stderr.read()
    with notify(listening, "--ready", "--no-block") as client:
        while messages.receive(listening.sock, 4096).data != b"READY=1":
            pass  # what it has told of its failure
        assert client.wait(60) == 0


@needs_root
@needs_systemd_notify
def test_claim_of_systemd_notify(listening):
    """As root, systemd-notify claims its parent's pid.

    As another user it cannot, and is named itself.
    """
    with notify(listening, "--ready", "--no-block") as client:
        assert messages.receive(listening.sock, 4096).cred == Cred(os.getpid(), 0, 0)
    os.chmod(listening.env["NOTIFY_SOCKET"], 0o666)

    def as_another_user():
        become(uid=1001, gid=2001)
        os.execvpe("systemd-notify", ["systemd-notify", "--ready", "--no-block"], listening.env)

    with Child(as_another_user) as client:
        message = messages.receive(listening.sock, 4096)
        assert (message.cred.uid, message.cred.pid) == (1001, client.pid)
        assert os.waitpid(client.pid, 0)[1] == 0
        client.forget()


def test_fdstore(listening, tmp_path):
    """A service hands over a descriptor, with its name and sender."""
    (tmp_path / "state").write_text("precious")

    def store():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, open(tmp_path / "state") as file:
            sock.connect(listening.env["NOTIFY_SOCKET"])
            socket.send_fds(sock, [b"FDSTORE=1\nFDNAME=state"], [file.fileno()])

    with Child(store) as service:
        service.result()
        with messages.receive(listening.sock, 4096, max_fds=16) as message:
            assert message.cred.pid == service.pid
            [stored] = message.detach_fds()
    with open(stored) as file:
        assert file.read() == "precious"
