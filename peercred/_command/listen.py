"""`peercred --listen`: make a socket, and show everyone who connects to it."""

import sys

# Type checkers skip the rest on other platforms.
assert sys.platform == "linux"

import contextlib
import errno
import signal
import socket
import time
from types import FrameType

from .output import complain, show_row, write_head
from .process import peer_of
from .sockets import bound, unix_socket

LIMITS = {errno.EMFILE: "`ulimit -n`", errno.ENFILE: "`sysctl fs.file-max`"}


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


def listen(address: bytes, mode: int, as_json: bool) -> int:
    """Listen and show clients until a signal comes. Return its number."""
    signals = Signals()
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as cleanup:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, signals)
                # Nothing is left to clean up then, and what is still to be
                # written may block.
                cleanup.callback(signal.signal, number, signal.SIG_DFL)
        server = cleanup.enter_context(unix_socket())
        cleanup.enter_context(bound(server, address, mode))
        server.listen()
        try:
            signals.may_raise = True
            show_clients(server, as_json, signals)
        finally:
            signals.may_raise = False
    return signals.received


def show_clients(server: socket.socket, as_json: bool, signals: Signals) -> None:
    """Show everyone who connects, until a signal comes."""
    # A signal that comes just before accept(2) does not interrupt it. And what
    # a handler raises inside pwd.getpwuid(), Python drops if there is no such
    # user. With a timeout, the signal is seen after a second at the latest.
    server.settimeout(1)
    write_head(as_json)
    while not signals.received:
        try:
            with server.accept()[0] as conn:
                peer = peer_of(conn)
        except TimeoutError:
            continue
        except OSError as error:
            if error.errno not in LIMITS:
                raise
            limit = LIMITS[error.errno]
            complain(f"{error.strerror}: cannot show a client. Trying again in a second; raise {limit}.")
            time.sleep(1)
        else:
            show_row(peer, as_json)
