"""The sockets of the command: how it connects to one, and makes one."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from peercred import messages

# Type checkers skip the rest on other platforms.
assert sys.platform == "linux"

WHY = {
    errno.ECONNREFUSED: "nobody listens there",
    errno.EPROTOTYPE: "nobody listens there: it is a datagram socket, or bound but not listening",
    errno.EAGAIN: "timed out because its queue of waiting clients is full: try again, or with a longer --timeout",
}


def unix_socket(kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket that takes no descriptors from the other end (Linux 6.16).

    To close a descriptor that a stranger has sent can block for hours.
    """
    sock = socket.socket(socket.AF_UNIX, kind)
    messages.enable(sock, creds=False, fds=False)
    return sock


@contextlib.contextmanager
def connected(address: bytes, timeout: float) -> Iterator[socket.socket]:
    """Connect to a stream or seqpacket socket. An OSError says why not."""
    deadline = time.monotonic() + timeout
    codes = []
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with unix_socket(kind) as conn:
            # EAGAIN is a full queue. A socket with a timeout would wait in
            # connect(2), and after Ctrl-Z and fg believe that it is connected.
            conn.setblocking(False)
            while (code := conn.connect_ex(address)) == errno.EAGAIN and time.monotonic() < deadline:
                time.sleep(0.02)
            if code == 0:
                conn.setblocking(True)
                yield conn
                return
        codes.append(code)
        if code not in (errno.EPROTOTYPE, errno.ECONNREFUSED):
            break
    # Only a dead socket refuses both types. One that is bound has a type, and
    # answers EPROTOTYPE to the other.
    if codes == [errno.EPROTOTYPE, errno.ECONNREFUSED]:
        code = errno.EPROTOTYPE
    path = Path(os.fsdecode(address))
    why = "not a socket" if path.exists() and not path.is_socket() else WHY.get(code)
    raise OSError(code, why or os.strerror(code))


@contextlib.contextmanager
def bound(server: socket.socket, address: bytes, mode: int) -> Iterator[None]:
    """Bind a socket. The file has this mode at once, and goes at the end."""
    if address.startswith(b"\0"):
        server.bind(address)
        yield
        return
    directory, name = os.path.split(address)
    os.chdir(directory or b".")  # and stay in it, whatever its path names later
    remove_if_dead(name or b".")  # a path that ends in / is a directory: refused
    os.fchmod(server.fileno(), mode)  # bind(2) copies it, less the umask
    server.bind(name)
    file = os.open(name, os.O_PATH | os.O_NOFOLLOW)
    try:
        made = os.fstat(file)
        if not stat.S_ISSOCK(made.st_mode):
            raise FileExistsError(errno.EEXIST, "another process has replaced the socket: choose another directory")
        if mode & ~made.st_mode:  # the umask was stricter
            os.chmod(f"/proc/self/fd/{file}", mode)
    finally:
        os.close(file)
    try:
        yield
    finally:
        # Leave a file that has taken its place. That one has another inode
        # number: the server, which is still open, holds on to this inode.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(name), made):
                os.unlink(name)


def remove_if_dead(name: bytes) -> None:
    """Remove a socket that nobody holds. Any other file is an error.

    Without the lock two processes could find the same one, and the slower one
    would remove the socket that the faster one has made since.
    """
    try:
        found = os.lstat(name)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "exists and is not a socket: choose another path")
    directory = os.open(".", os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_dead(name):
            os.unlink(name)
    except BlockingIOError as error:
        why = "exists, and another process has locked the directory: try again, or choose another path"
        raise OSError(error.errno, why) from None
    finally:
        os.close(directory)


def is_dead(name: bytes) -> bool:
    """Whether no process holds a socket."""
    try:
        with connected(name, 0):
            return False
    except OSError as error:
        return error.errno == errno.ECONNREFUSED
