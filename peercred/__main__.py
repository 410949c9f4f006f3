"""`peercred`, the command: who is behind this socket? It is for a person, so it may wait, and look names up."""

import argparse
import contextlib
import errno
import importlib
import json
import os
import re
import select
import shlex
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import peercred

Peer = dict[str, Any]

DESCRIPTION = """\
Show who is behind a Unix socket, as the Linux kernel recorded it.

  peercred PATH           connect, and show who listens there
  peercred --listen PATH  listen there, and show everyone who connects, until Ctrl-C
  peercred                show a child process that connects over a private socket: it works
"""
EPILOG = """\
@NAME is an abstract socket, ./@NAME a file. The process shown as listening is the one that called listen(2): under
socket activation that is systemd, pid 1. Connecting can start such a service.

Exit codes: 0 answered, 1 no answer, 2 usage.
"""
CHILD = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
WHY = {
    errno.ECONNREFUSED: "nobody listens there",
    errno.EPROTOTYPE: "nobody listens there: a datagram socket, or one that is bound but not listening",
    errno.EAGAIN: "timed out: its queue of waiting clients is full",
}
COLUMNS = {"TIME": 25, "PID": 7, "PROGRAM": 15, "UID": 17, "GID": 17, "GROUPS": 0}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def main() -> int:
    if sys.stdout is None:
        print("peercred: there is no standard output to write to", file=sys.stderr)
        return 1
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
        parser.error("argument --mode: goes with --listen")
    if options.timeout is not None and options.path is None:
        parser.error("argument --timeout: goes with PATH")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        refuse_elsewhere()
        if options.version:
            print("peercred", version("peercred"))
        elif options.listen is not None:
            listen(options.listen, 0o600 if options.mode is None else options.mode, options.json)
        elif options.path is not None:
            show_listener(options.path, options.timeout or 5, options.json)
        else:
            show_child(options.json)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        print(f"peercred: {printable(where + (error.strerror or str(error)))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1
    return 0


def refuse_elsewhere() -> None:
    """UnsupportedError where there is no Linux. Here, nobody is at the end of descriptor -1."""
    try:
        peercred.read(-1)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise


def socket_address(text: str) -> bytes:
    address = os.fsencode(text)
    if not address or b"\0" in address:
        raise argparse.ArgumentTypeError("a path is not empty, and has no NUL")
    return b"\0" + address[1:] if address.startswith(b"@") else address


def file_mode(text: str) -> int:
    if not re.fullmatch("[0-7]+", text) or int(text, 8) > 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal number from 0 to 777")
    return int(text, 8)


def seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0.001 <= float(text) <= 1_000_000:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0.001 to 1000000")


def show_listener(address: bytes, timeout: float, as_json: bool) -> None:
    with connect(address, timeout) as conn:
        peer = peer_of(conn)
    if not as_json:
        print(f"{printable(shown(address))}: this process called listen(2); under socket activation, that is pid 1.")
    show(peer, as_json)


def show_child(as_json: bool) -> None:
    with tempfile.TemporaryDirectory() as private, socket.socket(socket.AF_UNIX) as server:
        path = os.path.join(os.fsencode(private), b"socket")
        bind(server, path, 0o600)
        server.listen()
        server.settimeout(30)
        with subprocess.Popen([sys.executable, "-c", CHILD, path]) as child, server.accept()[0] as conn:
            if not as_json:
                print(
                    f"Process {child.pid}, a child of this one, has connected over a private socket. The kernel says:"
                )
            show(peer_of(conn), as_json)


def listen(address: bytes, mode: int, as_json: bool) -> None:
    stop, wake = socket.socketpair()
    with stop, wake, socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as cleanup:
        # A signal is a byte from wake to stop, and no exception: that could come in the middle of the clean-up.
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        cleanup.callback(signal.set_wakeup_fd, -1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, lambda *_: None)
        bind(server, address, mode)
        if not address.startswith(b"\0"):
            cleanup.callback(remove, address, os.lstat(address))
        server.listen()
        if not as_json and sys.stdout.isatty():
            show_row(*COLUMNS)
        while stop not in select.select([server, stop], [], [])[0]:
            with server.accept()[0] as conn:
                peer = peer_of(conn)
            if as_json:
                show(peer, as_json)
            else:
                groups = ",".join(map(str, peer["groups"] or ()))
                ids = named(peer["user"], peer["uid"]), named(peer["group"], peer["gid"])
                show_row(peer["time"], peer["pid"], peer["program"], *ids, groups)


def bind(server: socket.socket, address: bytes, mode: int) -> None:
    """Make the socket, with its mode from the first moment, and in the place of a dead socket at the most."""
    if not address.startswith(b"\0"):
        with contextlib.suppress(FileNotFoundError):
            before = os.lstat(address)
            if not stat.S_ISSOCK(before.st_mode):
                raise OSError(errno.EEXIST, f"{shown(address)}: exists, is no socket, and stays as it is")
            try:
                connect(address, 0).close()  # one that is alive is in the way of bind() below
            except ConnectionRefusedError:
                remove(address, before)
    mask = os.umask(0o777 & ~mode)
    try:
        server.bind(address)
    except OSError as error:
        raise OSError(error.errno, f"{shown(address)}: {error.strerror or error}") from None
    finally:
        os.umask(mask)


def remove(address: bytes, known: os.stat_result) -> None:
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(address), known):  # not another's, which has taken the place since
            os.unlink(address)


def connect(address: bytes, timeout: float) -> socket.socket:
    """A connection to a stream or seqpacket socket, or an OSError that says of which address and why."""
    deadline = time.monotonic() + timeout
    failure = OSError()
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with contextlib.ExitStack() as stack:
            conn = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            conn.setblocking(False)
            try:
                # EAGAIN is a full queue. To wait in connect(2) would be to believe in a connection after Ctrl-Z and fg.
                while (error := conn.connect_ex(address)) == errno.EAGAIN and time.monotonic() < deadline:
                    time.sleep(0.02)
            except OSError as too_long:
                failure = too_long
                break
            if error == 0:
                stack.pop_all()
                return conn
            # Only a dead socket refuses both types. One that is bound has a type, and the other is EPROTOTYPE.
            if failure.errno != errno.EPROTOTYPE or error != errno.ECONNREFUSED:
                failure = OSError(error, os.strerror(error))
            if error not in (errno.EPROTOTYPE, errno.ECONNREFUSED):
                break
    why = WHY.get(failure.errno or 0) or failure.strerror or str(failure)
    if os.path.exists(address) and not stat.S_ISSOCK(os.stat(address).st_mode):
        why = "not a socket"
    raise OSError(failure.errno, f"{shown(address)}: {why}") from None


def peer_of(conn: socket.socket) -> Peer:
    """All that can be found out of a connection's peer; None is what cannot. The keys are those of --json."""
    cred = peercred.read(conn)
    program, command, alive = process_of(conn)
    label = answer(peercred.read_label, conn)
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "pid": cred.pid,
        "program": program,
        "command": command,
        "uid": cred.uid,
        "user": name_of("pwd", "getpwuid", cred.uid),
        "gid": cred.gid,
        "group": name_of("grp", "getgrgid", cred.gid),
        "groups": answer(peercred.read_groups, conn),
        "label": None if label is None else text(label),
        "alive": alive,
    }


def answer(question: Callable[[socket.socket], Any], conn: socket.socket) -> Any:
    """What the kernel answers, or None if it cannot."""
    try:
        return question(conn)
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.ENODATA):
            raise
        return None


def process_of(conn: socket.socket) -> tuple[str | None, list[str] | None, bool | None]:
    """Program, command line, and whether it lives; of the peer itself, and of no other process that has its number."""
    try:
        pidfd = answer(peercred.open_pidfd, conn)
    except ProcessLookupError:
        return None, None, False
    if pidfd is None:
        return None, None, None
    try:
        program = command = None
        with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError):  # it has ended, or is hidden
            # The number that it has in this /proc, which may be of another PID namespace than this process; or -1.
            pid = re.findall(r"^Pid:\s*(.*)$", Path(f"/proc/self/fdinfo/{pidfd}").read_text(), re.MULTILINE)[0]
            program = text(Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n"))
            # Some write a title there, with nothing but NULs behind it.
            words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
            command = [text(word) for word in words.split(b"\0")] if words else []
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        if ended.poll(0):  # then /proc may have spoken of a successor
            return None, None, False
        return program, command, True
    finally:
        os.close(pidfd)


def name_of(database: str, function: str, id_: int) -> str | None:
    try:  # imported here, for Windows has neither pwd nor grp
        entry = getattr(importlib.import_module(database), function)(id_)
    except KeyError:
        return None
    return str(entry[0])


def named(name: str | None, id_: int) -> str:
    return str(id_) if name is None else f"{name} ({id_})"


def text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


def shown(address: bytes) -> str:
    return text(b"@" + address[1:] if address.startswith(b"\0") else address)


def printable(line: str) -> str:
    """What is safe on a terminal: a program's name, a label or a path may hold escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def show(peer: Peer, as_json: bool) -> None:
    if as_json:
        print(json.dumps(peer), flush=True)
        return
    groups = [named(name_of("grp", "getgrgid", gid), gid) for gid in peer["groups"] or ()]
    width = 9 if sys.stdout.isatty() else 0
    for name, value in {
        "pid": peer["pid"] or "none here: it is in a PID namespace that cannot be seen from this one",
        "program": peer["program"],
        "command": peer["command"] and shlex.join(peer["command"]),
        "user": named(peer["user"], peer["uid"]),
        "group": named(peer["group"], peer["gid"]),
        "groups": "none" if peer["groups"] == () else ", ".join(groups),
        "label": peer["label"],
        "alive": {True: "yes", False: "no", None: None}[peer["alive"]],
    }.items():
        print(f"{name + ':':<{width}} {printable(str(value or 'unknown'))}")


def show_row(*cells: object) -> None:
    """Columns on a terminal, tabs between in a pipe."""
    words = [printable(str("-" if cell is None or cell == "" else cell)) for cell in cells]
    if sys.stdout.isatty():
        words = [f"{word:<{width}}" for word, width in zip(words, COLUMNS.values(), strict=True)]
    print(("  " if sys.stdout.isatty() else "\t").join(words).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
