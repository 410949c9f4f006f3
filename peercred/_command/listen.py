"""`peercred --listen`: make a socket, and show everyone who connects to it."""

import sys

assert sys.platform == "linux"  # type checkers skip the rest elsewhere

import contextlib
import errno
import json
import os
import signal
import socket
from collections.abc import Iterator
from types import FrameType

from .connect import address_of, unix_socket
from .output import write
from .peer import COLUMNS, peer_of, row, row_of


class Signals:
    """Remember the first signal, and interrupt the showing of clients.

    Output can block for ever, so it must be possible to interrupt it. Making
    the socket and removing it must never be interrupted.
    """

    received = 0  # the number of the first
    may_raise = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if self.may_raise:
            self.may_raise = False
            raise KeyboardInterrupt


def listen(path: str, mode: int, as_json: bool) -> int:
    """Listen and show clients until a signal comes. Return its number."""
    signals = Signals()
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as cleanup:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, signals)
                cleanup.callback(signal.signal, number, signal.SIG_DFL)  # an error message may block
        server = cleanup.enter_context(unix_socket())
        cleanup.enter_context(bound(server, address_of(path), mode))
        server.listen()
        try:
            signals.may_raise = True
            show_clients(server, as_json, signals)
        finally:
            signals.may_raise = False
    return signals.received


@contextlib.contextmanager
def bound(server: socket.socket, address: bytes, mode: int) -> Iterator[None]:
    """Bind a socket. Its file is new, has this mode, and goes at the end."""
    if address.startswith(b"\0"):
        server.bind(address)
        yield
        return
    directory, name = os.path.split(address)
    os.chdir(directory or b".")  # and stay in it, whatever its path names later
    if os.path.lexists(name or b"."):  # a path that ends in / is a directory
        raise FileExistsError(errno.EEXIST, "it exists: remove it, if nobody uses it")
    umask = os.umask(0o777 - mode)
    try:
        server.bind(name)
    finally:
        os.umask(umask)
    made = os.lstat(name)
    try:
        yield
    finally:
        # A file that has taken its place has another inode number, because
        # the open server holds on to this one.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(name), made):
                os.unlink(name)


def show_clients(server: socket.socket, as_json: bool, signals: Signals) -> None:
    """Show everyone who connects, until a signal comes."""
    # A signal just before accept(2) does not interrupt it. Python drops what a
    # handler raises inside pwd.getpwuid() if there is no such user. With a
    # timeout, the signal is seen after a second at the latest.
    server.settimeout(1)
    if sys.stdout.isatty() and not as_json:
        write(row(COLUMNS))
    while not signals.received:
        try:
            with server.accept()[0] as conn:
                peer = peer_of(conn)
        except TimeoutError:
            continue
        write(json.dumps(peer) if as_json else row_of(peer))
