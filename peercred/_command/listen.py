"""`peercred --listen`: make a socket, and show everyone who connects to it."""
# ruff: noqa: E402

import sys

# Type checkers skip the rest on other platforms.
assert sys.platform == "linux"  # noqa: S101

import contextlib
import errno
import select
import signal
import socket
from collections.abc import Iterator
from types import FrameType

from .output import complain, show_row, write_head
from .process import peer_of
from .sockets import bound, unix_socket

LIMITS = {errno.EMFILE: "`ulimit -n`", errno.ENFILE: "`sysctl fs.file-max`"}


class Signals:
    """The first signal asks for the end. During output, a second forces it.

    The first one raises no exception, which could strike anywhere. It is seen
    where the next client is awaited. The second one raises KeyboardInterrupt,
    because output can block for ever. The clean-up is never interrupted.
    """

    received = 0  # the number of the last one
    during_output = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        forced = self.received and self.during_output
        self.received = number
        if forced:
            self.during_output = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def may_interrupt(self) -> Iterator[None]:
        self.during_output = True
        try:
            yield
        finally:
            self.during_output = False


def listen(address: bytes, mode: int, as_json: bool) -> int:
    """Listen and show clients until a signal comes. Return its number."""
    signals = Signals()
    stop, wake = socket.socketpair()
    with contextlib.suppress(KeyboardInterrupt), stop, wake, contextlib.ExitStack() as cleanup:
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        cleanup.callback(signal.set_wakeup_fd, -1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, signals)
                # Nothing is left to clean up then, and what is still to be
                # written may block.
                cleanup.callback(signal.signal, number, signal.SIG_DFL)
        server = cleanup.enter_context(unix_socket())
        cleanup.enter_context(bound(server, address, mode))
        server.listen()
        with signals.may_interrupt():
            write_head(as_json)
        while not signals.received:
            if server.fileno() in readable(server, stop):
                with signals.may_interrupt():
                    shown = show_client(server, as_json)
                if not shown:
                    readable(stop, timeout=1000)
    return signals.received


def show_client(server: socket.socket, as_json: bool) -> bool:
    """Show who has connected. False if there is no descriptor left for that."""
    try:
        with server.accept()[0] as conn:
            peer = peer_of(conn)
    except OSError as error:
        if error.errno not in LIMITS:
            raise
        complain(f"{error.strerror}: cannot show a client. Trying again in a second; raise {LIMITS[error.errno]}.")
        return False
    show_row(peer, as_json)
    return True


def readable(*socks: socket.socket, timeout: int | None = None) -> list[int]:
    """Wait for sockets, at most so many milliseconds. Which can be read?"""
    poll = select.poll()  # select(2) cannot take a descriptor above 1023
    for sock in socks:
        poll.register(sock, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(timeout)]
