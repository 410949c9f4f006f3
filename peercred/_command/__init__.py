"""The command line: its options, its three modes, and its exit code."""
# ruff: noqa: E402

import sys

# Type checkers skip the rest on other platforms.
assert sys.platform == "linux"  # noqa: S101

import argparse
import contextlib
import os
import re
import subprocess
import tempfile
from importlib.metadata import version
from typing import Any, NoReturn

from .listen import listen
from .output import complain, printable, show, write
from .process import Peer, peer_of, text
from .sockets import connect, unix_socket

DESCRIPTION = """\
Show who is behind a Unix socket, as the Linux kernel recorded it.

  peercred PATH           connect, and show who listens there
  peercred --listen PATH  listen there, and show everyone who connects, until Ctrl-C
  peercred                show a child process that connects over a private socket: it works
"""
EPILOG = """\
@NAME is an abstract socket, ./@NAME a file. The process that PATH shows is the one that called listen(2): under socket
activation that is systemd, pid 1. Connecting can start such a service.

Exit codes: 0 answered, 1 no answer, 2 usage.
"""
CHILD = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"


class Parser(argparse.ArgumentParser):
    """Writes errors to standard error only, and fails where output fails.

    argparse writes errors to standard output if standard error is closed.
    """

    def error(self, message: str) -> NoReturn:
        complain(f"error: {message}", self.format_usage().rstrip())
        sys.exit(2)

    def print_help(self, file: Any = None) -> None:
        write(self.format_help().rstrip())


def main() -> int:
    """Run the command line, and return the exit code."""
    address = None
    try:
        if sys.stdout is None:
            raise OSError("there is no standard output to write to")
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        options = parse()
        address = options.path or options.listen
        if options.version:
            write(f"peercred {version('peercred')}")
        elif options.path:
            show_listener(options.path, options.timeout or 5, options.json)
        elif options.listen:
            listen(options.listen, 0o600 if options.mode is None else options.mode, options.json)
        else:
            show_child(options.json)
    except OSError as error:
        where = error.filename or address
        why = error.strerror or str(error)
        complain(f"{shown(os.fsencode(where))}: {why}" if where else why)
        return 1
    except KeyboardInterrupt:
        return 1
    return 0


def parse() -> argparse.Namespace:
    parser = Parser(
        prog="peercred",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("path", nargs="?", type=socket_address, metavar="PATH", help="a socket file, or @NAME")
    place.add_argument("--listen", type=socket_address, metavar="PATH", help="where to make a socket")
    parser.add_argument("--mode", type=file_mode, metavar="OCTAL", help="mode of that socket's file (default: 0600)")
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="for connecting to PATH (default: 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object per peer and line")
    parser.add_argument("--version", action="store_true", help="show the version of peercred, and exit")
    options = parser.parse_args()
    if options.mode is not None and options.listen is None:
        parser.error("--mode requires --listen")
    if options.timeout is not None and options.path is None:
        parser.error("--timeout requires PATH")
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
    with connect(address, timeout) as conn:
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
    with tempfile.TemporaryDirectory() as private, unix_socket() as server:
        path = os.path.join(private, "socket")
        server.bind(path)
        server.listen()
        server.settimeout(30)
        # -I: else ./socket.py would take the place of the standard library's.
        with subprocess.Popen([sys.executable, "-I", "-c", CHILD, path]) as child:  # noqa: S603
            try:
                with server.accept()[0] as conn:
                    peer = peer_of(conn)
            except BaseException:
                child.kill()  # it may wait for ever
                raise
    who = f"Process {child.pid}, a child of this one, has connected over a private socket. The kernel says:"
    show(peer, as_json, who)


def shown(address: bytes) -> str:
    return text(b"@" + address[1:] if address.startswith(b"\0") else address)
