"""`peercred PATH` and `peercred`: connect, and show who listens."""

import sys

assert sys.platform == "linux"  # type checkers skip the rest elsewhere

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator

from peercred import messages

from .output import printable, write
from .peer import lines_of, peer_of

TIMEOUT = 5  # seconds
WHY = {
    errno.ECONNREFUSED: "nobody listens there, or it is not a socket",
    errno.EPROTOTYPE: "nobody listens there: it is a datagram socket, or bound but not listening",
    errno.EAGAIN: "timed out because its queue of waiting clients is full: try again",
}


def show_listener(path: str, as_json: bool, who: str = "this process") -> None:
    """Connect, and show the process that listens."""
    with connected(address_of(path)) as conn:
        peer = peer_of(conn)
    write(*[json.dumps(peer)] if as_json else [f"{printable(path)}: {who} called listen(2).", *lines_of(peer)])


def show_child(as_json: bool) -> None:
    """Show a child process, which listens at a name that the kernel chooses."""
    ours, theirs = socket.socketpair()
    with unix_socket() as server, ours, theirs:
        server.bind("")
        child = os.fork()  # which is neither waited for nor killed: SIGCHLD may be ignored
        if child == 0:  # pragma: no cover
            try:
                ours.close()
                server.listen()
                theirs.shutdown(socket.SHUT_WR)
                theirs.recv(1)  # until the other end is closed, or its process dies
            finally:
                os._exit(0)
        theirs.close()
        ours.recv(1)  # until the child listens, or has died
        show_listener(f"@{server.getsockname()[1:].decode()}", as_json, f"process {child}, a child of this one,")


@contextlib.contextmanager
def connected(address: bytes) -> Iterator[socket.socket]:
    """Connect to a stream or seqpacket socket. An OSError says why not."""
    deadline = time.monotonic() + TIMEOUT
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with unix_socket(kind) as conn:
            # EAGAIN is a full queue. A socket with a timeout would wait in
            # connect(2), and after Ctrl-Z and fg believe that it is connected.
            conn.setblocking(False)
            while (code := conn.connect_ex(address)) == errno.EAGAIN and time.monotonic() < deadline:
                time.sleep(0.02)
            if code == 0:
                yield conn
                return
        if code not in (errno.EPROTOTYPE, errno.ECONNREFUSED):  # what a socket of the other type says
            break
    raise OSError(code, WHY.get(code) or os.strerror(code))


def unix_socket(kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket that takes no descriptors from the other end (Linux 6.16)."""
    sock = socket.socket(socket.AF_UNIX, kind)
    messages.enable(sock, creds=False, fds=False)  # to close a stranger's can block for hours
    return sock


def address_of(path: str) -> bytes:
    """The address of a socket that is written @NAME if it is abstract."""
    return b"\0" + os.fsencode(path[1:]) if path.startswith("@") else os.fsencode(path)
