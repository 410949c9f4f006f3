"""What several test files need: real peers, what the kernel says, and marks.

A peer is a forked process, with ids and namespaces of its own. The numbers of
socket options stand here too, where the standard library has no name for them.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import errno
import itertools
import os
import pickle
import pty
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from peercred import Cred

# What a test may take, in seconds. conftest.py ends it then, with a traceback.
DEADLINE = 300

# From <asm/socket.h> of each architecture in Linux itself.
OPTIONS = (
    "SOL_SOCKET", "SO_PASSCRED", "SO_PEERCRED", "SO_PEERSEC", "SO_PASSSEC",
    "SO_PEERGROUPS", "SO_PASSPIDFD", "SO_PEERPIDFD", "SO_PASSRIGHTS",
)  # fmt: skip
OPTION_NUMBERS = {
    "most": (1, 16, 17, 31, 34, 59, 76, 77, 83),
    "powerpc": (1, 20, 21, 31, 34, 59, 76, 77, 83),
    "mips": (0xFFFF, 17, 18, 30, 34, 59, 76, 77, 83),
    "parisc": (0xFFFF, 0x4010, 0x4011, 0x401D, 0x401E, 0x4034, 0x404A, 0x404B, 0x4051),
    "sparc": (0xFFFF, 2, 0x40, 30, 31, 61, 85, 86, 0x5C),
}
# This machine's, but only of those that the standard library does not name:
# they are the common ones on all architectures but two.
ARCHITECTURE = next((name for name in ("parisc", "sparc") if os.uname().machine.startswith(name)), "most")
UNNAMED = dict(zip(OPTIONS, OPTION_NUMBERS[ARCHITECTURE], strict=True))


def option_number(name: str) -> int:
    """The number of a socket option on this machine."""
    return getattr(socket, name, None) or UNNAMED[name]


SO_PEERGROUPS, SO_PASSPIDFD, SO_PEERPIDFD, SO_PASSRIGHTS = map(
    option_number, ("SO_PEERGROUPS", "SO_PASSPIDFD", "SO_PEERPIDFD", "SO_PASSRIGHTS")
)
SCM_SECURITY, SCM_PIDFD = 3, 4
SO_TIMESTAMP = 29  # not on parisc

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make processes of other users")
needs_pidfd_open = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs os.pidfd_open, which PyPy lacks")


def needs_cpython(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(sys.implementation.name != "cpython", reason=f"needs CPython: {reason}")


needs_ipv6 = pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="needs a kernel with IPv6")


class Child:
    """A forked process, which calls `function` and hands over what it returns.

    It lives on until it is closed, but not longer than the test's deadline.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        result, result_end = os.pipe()
        stop, self._stop = os.pipe()
        left = signal.getitimer(signal.ITIMER_REAL)[0]  # a child inherits no timer
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, left or DEADLINE)
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
        """What the function returned. If it raised, the test fails."""
        value, failure = pickle.load(self._result)
        assert failure is None, f"in the child:\n{failure}"
        return value

    def status(self, key: str) -> list[int]:
        """The numbers in a line of /proc/<pid>/status.

        For Uid and Gid: real, effective, saved, file system.
        """
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
        """End it by force, because it would not end by itself."""
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


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What it returns, or the type and errno of the OSError that it raises.

    Both can be handed over from a child.
    """
    try:
        return function(*args, **kwargs)
    except OSError as error:
        return type(error), error.errno


def proc_status(pid: int | str, key: str) -> list[int]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return [int(word) for word in line.split()[1:]]
    raise AssertionError(f"/proc/{pid}/status has no {key}")


def state(task: object) -> str:
    """What a process or thread does, given its directory in /proc.

    "S" says that it waits, "T" that it is stopped, "Z" that it has ended.
    """
    return Path(f"{task}/stat").read_text().rpartition(")")[2].split()[0]


def own() -> Cred:
    """This process, by its real ids."""
    return Cred(os.getpid(), os.getuid(), os.getgid())


def own_effective() -> Cred:
    """This process, by its effective ids."""
    return Cred(os.getpid(), os.geteuid(), os.getegid())


# The ways to copy a value.
COPIES: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))]

# What the kernel says of a socket without a peer: pid 0, and ids of -1.
NOBODY = (0, 2**32 - 1, 2**32 - 1)


def raw(sock: socket.socket) -> tuple[int, int, int]:
    """SO_PEERCRED's bytes, as the standard library gets them."""
    return struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


def enabled(sock: socket.socket) -> set[str]:
    """What comes with messages that arrive here, as the kernel says."""
    options = {"creds": socket.SO_PASSCRED, "pidfd": SO_PASSPIDFD, "label": socket.SO_PASSSEC}
    asked = {name: outcome(sock.getsockopt, socket.SOL_SOCKET, option) for name, option in options.items()}
    return {name for name, on in asked.items() if on not in (0, (OSError, errno.ENOPROTOOPT))}


class OverflowIds(NamedTuple):
    """What a uid and a gid without a mapping read as."""

    uid: int
    gid: int


def overflow_ids() -> OverflowIds:
    return OverflowIds(*(int(Path(f"/proc/sys/kernel/overflow{kind}").read_text()) for kind in ("uid", "gid")))


def open_descriptors() -> dict[str, str]:
    """Each open descriptor of this process, and what it refers to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists the directory
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def is_open(fd: int) -> bool:
    """Whether this process has a descriptor of this number."""
    return os.path.exists(f"/proc/self/fd/{fd}")


@contextlib.contextmanager
def free_descriptors(number: int) -> Iterator[None]:
    """Only so many descriptors can be opened meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0) for _ in range(number)]
    limit = max(*map(int, open_descriptors()), *taken) + 1
    while (fd := os.dup(0)) < limit:
        taken.insert(0, fd)
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    for fd in taken[len(taken) - number :]:
        os.close(fd)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in taken[: len(taken) - number]:
            os.close(fd)


def fill_table() -> list[int]:
    """Take every descriptor up to a limit of 64: those that were taken."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken = []
    while isinstance(fd := outcome(os.dup, 0), int):
        taken.append(fd)
    return taken


def sockets_of_every_family() -> Iterator[socket.socket]:
    """A socket of each family, type and protocol that this kernel makes.

    Unix sockets are left out. Protocol 0 makes one in most families.
    """
    protocols = {
        socket.AF_INET: (0, 1, 132, 262),  # ICMP, SCTP, MPTCP
        socket.AF_INET6: (0, 58, 132, 262),  # ICMPv6, SCTP, MPTCP
        15: (2,),  # PF_KEY: PF_KEY_V2
        24: range(3),  # PPPoX
        29: range(8),  # CAN
        31: range(8),  # Bluetooth
        33: (2, 10),  # RxRPC: over IPv4, IPv6
        39: range(2),  # NFC
    }
    for family in set(range(1, 46)) - {socket.AF_UNIX}:
        for kind, protocol in itertools.product(range(1, 11), protocols.get(family, (0,))):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT:  # of no type, either
                    break
                continue
            with sock:
                yield sock


class Holder:
    """An object with a fileno() that returns, or raises, what it is given."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def fileno(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Everyone(int):
    """A number that is equal to every other."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class Transport:
    """An object with nothing but asyncio's get_extra_info()."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.socket if name == "socket" else default


def attach(sock: socket.socket, data: bytes, number: int, file: str = os.devnull) -> None:
    """Send descriptors of a file as other programs do."""
    with open(file) as opened:
        socket.send_fds(sock, [data], [opened.fileno()] * number)


def run_python(program: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    """What a Python program of its own prints, with more in its environment."""
    command = [sys.executable, "-c", program, *arguments]
    env = {**os.environ, **(env or {})}
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def interrupted_by(handler: Callable[..., object], after: float, interval: float = 0) -> Iterator[None]:
    """Run `handler` at SIGALRM, once or again and again.

    The test's own deadline, which is a SIGALRM too, goes on afterwards.
    """
    going = True

    def run(*arguments: object) -> None:
        handler(*arguments)
        if going:  # where the timer has an interval, a slow handler would interrupt itself without end
            signal.setitimer(signal.ITIMER_REAL, interval)

    left, _ = signal.getitimer(signal.ITIMER_REAL)
    previous = signal.signal(signal.SIGALRM, run)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        going = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, left, 1)


def fdinfo(fd: int) -> int:
    """The pid that a pidfd refers to, -1 if that process is gone."""
    return int(re.search(r"^Pid:\s*(-?\d+)$", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)[1])


def identity(fd: int) -> tuple[int, int]:
    """Two descriptors of one file or process have the same."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def own_identity(pid: int) -> tuple[int, int]:
    """The identity of a pidfd that is opened by pid."""
    fd = os.pidfd_open(pid)
    try:
        return identity(fd)
    finally:
        os.close(fd)


def become(*, uid: int | tuple[int, int, int], gid: int | tuple[int, int, int], groups: tuple[int, ...] = ()) -> None:
    """Take on ids: one for all, or real, effective and saved."""
    os.setgroups(groups)
    os.setresgid(*((gid,) * 3 if isinstance(gid, int) else gid))
    os.setresuid(*((uid,) * 3 if isinstance(uid, int) else uid))


def connect(address: str | bytes, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A Unix socket that is connected to an address."""
    client = socket.socket(socket.AF_UNIX, kind)
    try:
        client.connect(address)
    except OSError:
        client.close()
        raise
    return client


def fill_backlog(server: socket.socket, stack: contextlib.ExitStack) -> socket.socket:
    """Connect clients to a server, as many as it lets wait.

    The client that is returned was refused, because it would have to wait.
    """
    while True:
        client = stack.enter_context(socket.socket(socket.AF_UNIX, server.type))
        client.setblocking(False)
        if code := client.connect_ex(server.getsockname()):
            assert code == errno.EAGAIN
            return client


def disconnect(sock: socket.socket) -> None:
    """connect(2) to AF_UNSPEC, which the standard library has no name for."""
    if LIBC.connect(sock.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16) != 0:
        raise OSError(ctypes.get_errno(), "connect(AF_UNSPEC)")


def connect_soon(path: str, server: Child, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A connection to a server that may not be listening yet.

    It must not have ended, though.
    """
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
    """What `function` returns as process 1 of a new PID namespace.

    It has a /proc of its own.
    """

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
    """What `function` returns in a user namespace with this mapping of ids.

    Only root can write such a mapping.
    """
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
    """Another process with the number of one that was reaped.

    Use it in a PID namespace, where nobody else takes numbers.
    """
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    stranger = Child(lambda: None)
    assert stranger.pid == pid
    stranger.result()
    return stranger


def kernel_has(option: int) -> bool:
    """Whether a connected socket has this option."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        value = outcome(ours.getsockopt, socket.SOL_SOCKET, option, 1024)  # Python allows no more
    if option == SO_PEERPIDFD and isinstance(value, bytes):
        os.close(int.from_bytes(value, sys.byteorder))
    return isinstance(value, bytes)


needs_pidfd = pytest.mark.skipif(not kernel_has(SO_PEERPIDFD), reason="needs Linux 6.5, for SO_PEERPIDFD")


def kernel_has_passrights() -> bool:
    """Whether there is SO_PASSRIGHTS, which is on by default."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            return bool(sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS))
        except OSError:
            return False


needs_passrights = pytest.mark.skipif(not kernel_has_passrights(), reason="needs Linux 6.16, for SO_PASSRIGHTS")


def open_terminal() -> tuple[int, int]:
    """The two ends of a pseudo-terminal. The second one is the terminal."""
    try:
        return pty.openpty()
    except OSError as error:
        pytest.skip(reason=f"needs a pseudo-terminal, and so /dev/pts, which not every chroot has: {error}")


def on_a_terminal(command: list[str]) -> tuple[str, int]:
    """What it writes on a terminal, and its exit code."""
    ours, theirs = open_terminal()
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
