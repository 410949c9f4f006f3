"""The command line: its options, its three modes, and its exit code."""

import argparse
import re
import sys
from importlib.metadata import version
from typing import Any, NoReturn

from .output import complain, write

if sys.platform == "linux":
    from .connect import show_child, show_listener
    from .listen import listen

DESCRIPTION = """\
Show who is behind a Unix socket, as the Linux kernel recorded it:

  peercred PATH           connect, and show which process listens there
  peercred --listen PATH  listen there, and show everyone who connects
  peercred                show a child process that listens, as a test
"""
EPILOG = """\
A PATH of @NAME is an abstract socket. A file with such a name is ./@NAME.

The process shown for PATH is the one that called listen(2). Under socket
activation that is systemd, process 1: `systemctl list-sockets` names the
service. Connecting can start such a service.

Exit codes: 0 there was an answer, 1 there was none, 2 the command line is
wrong; 128 and the number of the signal if a signal has ended --listen.
"""


class Parser(argparse.ArgumentParser):
    """argparse writes errors to standard output if standard error is closed."""

    def error(self, message: str) -> NoReturn:
        complain(message.removeprefix("argument "), self.format_usage().rstrip())
        sys.exit(2)

    def print_help(self, file: Any = None) -> None:
        write(self.format_help().rstrip())


def main() -> int:
    """Run the command line, and return the exit code."""
    path = None
    try:
        if sys.stdout is None:
            raise OSError("there is no standard output to write to")
        options = parse()
        path = options.path or options.listen
        if options.version:
            write(f"peercred {version('peercred')}")
        elif sys.platform != "linux":
            raise OSError(f"this needs Linux, and the platform is {sys.platform!r}")
        elif options.path:
            show_listener(options.path, options.json)
        elif options.listen:
            return 128 + listen(options.listen, 0o600 if options.mode is None else options.mode, options.json)
        else:
            show_child(options.json)
    except OSError as error:
        why = error.strerror or str(error)
        complain(f"{path}: {why}" if path else why)
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
    one = parser.add_mutually_exclusive_group()
    one.add_argument("path", nargs="?", metavar="PATH", help="a socket file, or @NAME")
    one.add_argument("--listen", metavar="PATH", help="make a socket there")
    parser.add_argument("--mode", type=file_mode, metavar="OCTAL", help="the mode of its file (default: 0600)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per peer, on a line")
    parser.add_argument("--version", action="store_true", help="print the version, and exit")
    options = parser.parse_args()
    if "" in (options.path, options.listen):
        parser.error("a path must not be empty")
    if options.mode is not None and not options.listen:
        parser.error("--mode requires --listen")
    return options


def file_mode(argument: str) -> int:
    if not re.fullmatch("[0-7]+", argument) or int(argument, 8) > 0o777:
        raise argparse.ArgumentTypeError(f"{argument!r} is not an octal number from 0 to 777")
    return int(argument, 8)
