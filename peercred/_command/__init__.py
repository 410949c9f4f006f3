"""The command line: its options, its three modes, and its exit code."""

import sys

# Type checkers skip the rest on other platforms.
assert sys.platform == "linux"

import argparse
import contextlib
import os
import re
import signal
import socket
from importlib.metadata import version
from typing import Any, NoReturn

from .listen import listen
from .output import complain, printable, show, write
from .process import Peer, peer_of, text
from .sockets import connected, unix_socket

DESCRIPTION = """\
Show who is behind a Unix socket, as the Linux kernel recorded it:

  peercred PATH           connect, and show which process listens there
  peercred --listen PATH  listen there, and show everyone who connects
  peercred                connect a child process, and show it, as a test
"""
EPILOG = """\
A PATH of @NAME is an abstract socket. A file with such a name is ./@NAME.

The process shown for PATH is the one that called listen(2). Under socket
activation that is systemd, process 1. Connecting can start such a service.

Exit codes: 0 there was an answer, 1 there was none, 2 the command line is
wrong; 128 and the number of the signal if a signal has ended --listen.
"""


class Parser(argparse.ArgumentParser):
    """Writes errors to standard error only, and fails where output fails.

    argparse writes errors to standard output if standard error is closed.
    """

    def error(self, message: str) -> NoReturn:
        complain(message.removeprefix("argument "), self.format_usage().rstrip())
        sys.exit(2)

    def print_help(self, file: Any = None) -> None:
        write(self.format_help().rstrip())


def main() -> int:
    """Run the command line, and return the exit code."""
    address = None
    try:
        if sys.stdout is None:
            raise OSError("there is no standard output to write to")
        options = parse()
        address = options.path or options.listen
        if options.version:
            write(f"peercred {version('peercred')}")
        elif options.path:
            show_listener(options.path, options.timeout or 5, options.json)
        elif options.listen:
            return 128 + listen(options.listen, 0o600 if options.mode is None else options.mode, options.json)
        else:
            show_child(options.json)
    except OSError as error:
        why = error.strerror or str(error)
        complain(f"{shown(address)}: {why}" if address else why)
        return 1
    return 0


def parse() -> argparse.Namespace:
    parser = Parser(
        prog="peercred",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", nargs="?", type=socket_address, metavar="PATH", help="a socket file, or @NAME")
    parser.add_argument("--listen", type=socket_address, metavar="PATH", help="make a socket there")
    parser.add_argument("--mode", type=file_mode, metavar="OCTAL", help="the mode of its file (default: 0600)")
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="how long to try to connect (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per peer, on a line")
    parser.add_argument("--version", action="store_true", help="print the version, and exit")
    options = parser.parse_args()
    if options.path and options.listen:
        parser.error("give a PATH to connect to, or --listen PATH, but not both")
    if options.mode is not None and not options.listen:
        parser.error("--mode requires --listen")
    if options.timeout and not options.path:
        parser.error("--timeout requires a PATH to connect to")
    return options


def socket_address(argument: str) -> bytes:
    if not argument:
        raise argparse.ArgumentTypeError("a path must not be empty")
    address = os.fsencode(argument)
    return b"\0" + address[1:] if address.startswith(b"@") else address


def file_mode(argument: str) -> int:
    if not re.fullmatch("[0-7]+", argument) or int(argument, 8) > 0o777:
        raise argparse.ArgumentTypeError(f"{argument!r} is not an octal number from 0 to 777")
    return int(argument, 8)


def seconds(argument: str) -> float:
    with contextlib.suppress(ValueError):
        if 0.001 <= float(argument) <= 1_000_000:
            return float(argument)
    raise argparse.ArgumentTypeError(f"{argument!r} is not a number from 0.001 to 1000000")


def show_listener(address: bytes, timeout: float, as_json: bool) -> None:
    with connected(address, timeout) as conn:
        peer = peer_of(conn)
    show(peer, as_json, f"{printable(shown(address))}: this process called listen(2).", after=hints(peer))


def hints(peer: Peer) -> list[str]:
    """How to find the process that serves the socket, if it is another one."""
    if peer["alive"] is False:
        return ["That process has ended. Another one serves the socket now: `ss -xlp` names it."]
    if peer["pid"] == 1:
        return ["If pid 1 is systemd, it listens for a service that it starts: `systemctl list-sockets` names it."]
    return []


def show_child(as_json: bool) -> None:
    with unix_socket() as server:
        server.bind("")  # the kernel chooses an abstract name: no file can be left behind
        server.listen()
        server.settimeout(30)
        child = os.fork()
        if child == 0:  # pragma: no cover
            connect_until_closed(server)
        try:
            peer = None
            while peer is None or peer["pid"] != child:  # anyone may connect to an abstract name
                with server.accept()[0] as conn:
                    peer = peer_of(conn)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    show(peer, as_json, f"Process {child}, a child of this one, has connected. The kernel says:")


def connect_until_closed(server: socket.socket) -> NoReturn:  # pragma: no cover
    """Connect, and stay until the other end is closed or its process dies."""
    try:
        address = server.getsockname()
        server.close()  # else it would keep itself alive
        with connected(address, 30) as conn:
            conn.recv(1)
    finally:
        os._exit(0)


def shown(address: bytes) -> str:
    return text(b"@" + address[1:] if address.startswith(b"\0") else address)
