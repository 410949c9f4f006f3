"""Real peers for the tests: forked processes, with ids and namespaces of their own, and what /proc says of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import pty
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peercred import Cred
from peercred._libc import lib

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make processes of other users")
needs_pidfd_open = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs os.pidfd_open, which PyPy lacks")


def needs_cpython(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(sys.implementation.name != "cpython", reason=f"needs CPython: {reason}")


needs_ipv6 = pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="needs a kernel with IPv6")


class Child:
    """A forked process that calls `function`, hands over what it returns, and lives on until closed."""

    def __init__(self, function: Callable[[], Any]) -> None:
        result, result_end = os.pipe()
        stop, self._stop = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                try:
                    outcome = (function(), None)
                    status = 0
                except BaseException:
                    outcome = (None, traceback.format_exc())
                with open(result_end, "wb") as file:
                    pickle.dump(outcome, file)
                os.read(stop, 1)
            finally:
                os._exit(status)
        os.close(result_end)
        os.close(stop)
        self._result = open(result, "rb")  # noqa: SIM115
        self._alive = True

    def result(self) -> Any:
        """What the function returned, once it has; its traceback fails the test."""
        value, failure = pickle.load(self._result)
        assert failure is None, f"in the child:\n{failure}"
        return value

    def status(self, key: str) -> list[int]:
        """The numbers of a line of /proc/<pid>/status; of Uid: real, effective, saved, file system."""
        return proc_status(self.pid, key)

    def end(self) -> None:
        """Let it exit, and wait until it is a zombie: dead, but not reaped."""
        self._release()
        assert LIBC.waitid(P_PID, self.pid, None, WEXITED | WNOWAIT) == 0  # PyPy has no os.waitid

    def reap(self) -> None:
        """Let it exit, and take its status, so that no trace of it is left."""
        self._alive = False
        self._release()
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, f"the child ended with status {status}"

    def forget(self) -> None:
        """The test itself has reaped it."""
        self._alive = False

    def kill(self) -> None:
        """End it by force, for it would not end by itself."""
        self._alive = False
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def _release(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it runs another program by now, or is a zombie
            os.write(self._stop, b"x")

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if self._alive:
                self.reap() if kind is None else self.kill()
        finally:
            self._result.close()
            os.close(self._stop)


def call(function: Callable[[], Any]) -> Any:
    """What `function` returns in a process of its own."""
    with Child(function) as child:
        return child.result()


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    """What it returns, or the type and errno of the OSError that it raises: fit to be handed over."""
    try:
        return function(*args)
    except OSError as error:
        return type(error), error.errno


def proc_status(pid: int | str, key: str) -> list[int]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return [int(word) for word in line.split()[1:]]
    raise AssertionError(f"/proc/{pid}/status has no {key}")


def own() -> Cred:
    """This process, by its real ids."""
    return Cred(os.getpid(), os.getuid(), os.getgid())


def fdinfo(fd: int) -> int:
    return int(re.search(r"^Pid:\s*(-?\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)[1])


def identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def own_identity(pid: int) -> tuple[int, int]:
    fd = os.pidfd_open(pid)
    try:
        return identity(fd)
    finally:
        os.close(fd)


def become(*, uid: int | tuple[int, int, int], gid: int | tuple[int, int, int], groups: tuple[int, ...] = ()) -> None:
    """Take ids on: one for all, or real, effective and saved."""
    os.setgroups(groups)
    os.setresgid(*((gid,) * 3 if isinstance(gid, int) else gid))
    os.setresuid(*((uid,) * 3 if isinstance(uid, int) else uid))


def connect(address: str | bytes, kind: int = socket.SOCK_STREAM) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, kind)
    try:
        client.connect(address)
    except OSError:
        client.close()
        raise
    return client


def connect_soon(path: str, server: Child, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A connection to a server that may not be listening yet, but must not have ended."""
    for _ in range(6000):
        assert os.waitpid(server.pid, os.WNOHANG) == (0, 0), "the server has ended"
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return connect(path, kind)
        time.sleep(0.01)
    raise TimeoutError(f"nobody listens at {path}")


def exec_cat(sock: socket.socket) -> None:
    """Become `cat`, which answers what it is sent."""
    os.dup2(sock.fileno(), 0)
    os.dup2(sock.fileno(), 1)
    os.execvp("cat", ["cat"])


LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
P_PID, WEXITED, WNOWAIT = 1, 4, 0x1000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000


def unshare(flags: int) -> None:
    """unshare(2), which os has from Python 3.12 only."""
    if LIBC.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), f"unshare({flags:#x})")


def in_pid_namespace(function: Callable[[], Any]) -> Any:
    """What `function` returns as process 1 of a new PID namespace, with a /proc of its own."""

    def first() -> Any:
        for source, target, kind, flags in ((None, b"/", None, MS_REC | MS_PRIVATE), (b"proc", b"/proc", b"proc", 0)):
            if LIBC.mount(source, target, kind, flags, None) != 0:
                raise OSError(ctypes.get_errno(), f"mount({target!r})")
        return function()

    def namespace() -> Any:
        unshare(CLONE_NEWPID | CLONE_NEWNS)
        return call(first)

    return call(namespace)


def bind_mount(source: Path, target: Path) -> None:
    if LIBC.mount(bytes(source), bytes(target), None, MS_BIND, None) != 0:
        raise OSError(ctypes.get_errno(), f"mount({target})")


def in_user_namespace(mapping: str, function: Callable[[], Any]) -> Any:
    """What `function` returns in a user namespace, where ids are mapped so; as root."""
    asked, ask = os.pipe()
    mapped, has_mapped = os.pipe()

    def inside() -> Any:
        try:
            unshare(CLONE_NEWUSER)
        finally:
            os.write(ask, b"x")
        os.read(mapped, 1)
        return function()

    with Child(inside) as child:
        os.read(asked, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child.pid}/{name}").write_text(mapping)
        os.write(has_mapped, b"x")
        result = child.result()
    for fd in (asked, ask, mapped, has_mapped):
        os.close(fd)
    return result


def stranger_with(pid: int) -> Child:
    """Another process with the number of one that was reaped, in a PID namespace where nobody else takes numbers."""
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    stranger = Child(lambda: None)
    assert stranger.pid == pid
    stranger.result()
    return stranger


def kernel_has_pidfd() -> bool:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            value = ours.getsockopt(socket.SOL_SOCKET, lib.SO_PEERPIDFD, 4)
        except OSError:
            return False
        os.close(int.from_bytes(value, sys.byteorder))
        return True


needs_pidfd = pytest.mark.skipif(not kernel_has_pidfd(), reason="needs Linux 6.5, for SO_PEERPIDFD")


def kernel_has_passrights() -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            return bool(sock.getsockopt(socket.SOL_SOCKET, lib.SO_PASSRIGHTS))
        except OSError:
            return False


needs_passrights = pytest.mark.skipif(not kernel_has_passrights(), reason="needs Linux 6.16, for SO_PASSRIGHTS")


def on_a_terminal(command: list[str]) -> tuple[str, int]:
    """What it writes on a terminal, and its exit code."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        output = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
            while chunk := os.read(ours, 4096):
                output += chunk
    os.close(ours)
    return output.decode().replace("\r\n", "\n"), process.returncode


def namespaces_can_be_made() -> bool:
    try:
        in_user_namespace("0 0 1", lambda: None)
        in_pid_namespace(lambda: None)
    except (AssertionError, OSError, EOFError):
        return False
    return True


needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not namespaces_can_be_made(), reason="needs root that may make namespaces (CAP_SYS_ADMIN)"
)
