"""What a call of peercred costs, beside other ways to the same answer.

A script, which pytest does not collect:

    python tests/benchmark.py [calls] [groups] [accept] [latency] [threads]
                              [messages] [import] [growth]

calls    The median time of one call on one connected socket. Its ratios are to
         the same two system calls in a bare C loop, compiled here by $CC or cc,
         and to the standard library doing the same job.
groups   What the number of the peer's supplementary groups costs, up to the
         65,536 that there can be (as root).
accept   How many connections of a forked client a server accepts in a second,
         bare and with a check of each.
latency  The median and 99th percentile of a single call while two other threads
         keep the interpreter busy.
threads  How many calls 1, 2, 4 and 8 threads make in a second, each on a socket
         of its own.
messages The median time of one receive of a datagram with credentials, without
         and with a descriptor attached, eight of which are queued. Its ratio is
         to the standard library's recvmsg with the same parsing by hand.
import   What `import peercred` takes when dataclasses, most of its cost, is
         imported already.
growth   Memory and descriptors gained by a million calls, half of which fail.

What a ratio compares is measured in the same run, taking turns, because no two
machines are alike and none is quiet. A missed target is information: it is
printed, and the exit code stays 0. Linux only. With unix-cred installed
(`pip install unix-cred`) there is one more row to compare with.
"""

import argparse
import ctypes
import gc
import os
import platform
import shlex
import struct
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from errno import EAFNOSUPPORT, EMSGSIZE, ENOTCONN
from itertools import cycle, islice
from math import inf, isnan, nan
from pathlib import Path
from signal import SIGKILL
from socket import (
    AF_UNIX,
    CMSG_LEN,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    SCM_CREDENTIALS,
    SCM_RIGHTS,
    SO_PASSCRED,
    SO_PEERCRED,
    SO_TYPE,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
    socketpair,
)
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter_ns
from timeit import Timer
from typing import Any

import peercred
from peercred import messages, read, read_groups  # noqa: F401, in statements

try:
    from unix_cred import get_peer_pid_uid_gid
except ImportError:
    get_peer_pid_uid_gid = None

C_LOOP, SAME_JOB, UNIX_CRED, READ = "C loop", "stdlib, same job", "unix-cred", "peercred.read(sock)"

REQUIRE, REQUIRE_LONG = "AllowList.require(sock), 1 uid", "AllowList.require(sock), 100,000 uids"
REQUIRE_GROUP = "AllowList.require(sock), a group"

# Name, statement, and how many calls one execution of it makes. It sees this
# module's names, and a `scope`.
Rows = dict[str, tuple[str, int]]
CALLS: Rows = {
    C_LOOP: ("C.c_loop(fd, 1000)", 1000),  # many, or this would time how ctypes gets there
    "stdlib, tuple idiom": ("struct.unpack('3i', sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))", 1),
    SAME_JOB: ("same_job(sock)", 1),
    "ctypes, getsockopt": ("ctypes_idiom(sock)", 1),
    UNIX_CRED: ("get_peer_pid_uid_gid(sock)", 1),
    READ: ("read(sock)", 1),
    "peercred.read(fd)": ("read(fd)", 1),
    REQUIRE: ("allowed.require(sock)", 1),
    REQUIRE_LONG: ("allowed_long.require(sock)", 1),
    REQUIRE_GROUP: ("allowed_group.require(sock)", 1),
    "peercred.read_groups(sock)": ("read_groups(sock)", 1),
    "peercred.read_label(sock)": ("peercred.read_label(sock)", 1),
    "peercred.open_pidfd(sock), os.close": ("os.close(peercred.open_pidfd(sock))", 1),
    "peercred.open_proc(sock), os.close": ("os.close(peercred.open_proc(sock))", 1),
}
ALL_GROUPS, ALL_IN_C = "read_groups, 65,536 groups", "C, 65,536 groups, and a tuple of them"

RECVMSG, QUEUED = "stdlib, recvmsg alone", 8
BY_HAND, RECEIVE = "stdlib, parsed by hand", "messages.receive(sock, 4096)"
BY_HAND_FD, RECEIVE_FD = "stdlib, by hand, with a descriptor", "messages.receive(sock, 4096, max_fds=1)"

C_SOURCE = """
#define _GNU_SOURCE
#include <sys/socket.h>
#include <sys/un.h>

void c_loop(int fd, long calls)
{
    while (calls-- > 0) {
        struct ucred cred;
        struct sockaddr_un address;
        socklen_t length = sizeof cred, size = sizeof address;
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &length);
        getpeername(fd, (struct sockaddr *)&address, &size);
    }
}

void c_groups(int fd, void *gids, long calls)
{
    while (calls-- > 0) {
        struct sockaddr_un address;
        socklen_t length = 65536 * sizeof(gid_t), size = sizeof address;
        getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, gids, &length);
        getpeername(fd, (struct sockaddr *)&address, &size);
    }
}
"""

IMPORTS = """
import sys, time
sys.path.append(sys.argv[1])  # -I leaves out PYTHONPATH and the user's site-packages
times = [time.perf_counter_ns()]
import dataclasses
times.append(time.perf_counter_ns())
import peercred
times.append(time.perf_counter_ns())
print(times[1] - times[0], times[2] - times[1])
"""

LIBC = ctypes.CDLL(None, use_errno=True)
UCRED = struct.Struct("iII")
# As plain ints, for the & of an IntFlag takes longer than a system call.
ROOM, CLOEXEC, CTRUNC = CMSG_LEN(UCRED.size), int(MSG_CMSG_CLOEXEC), int(MSG_CTRUNC)


@dataclass(frozen=True, slots=True)
class Peer:
    pid: int | None
    uid: int
    gid: int


def same_job(sock: socket) -> Peer:
    """What `read` does, as a careful reader would write it without peercred."""
    pid, uid, gid = UCRED.unpack(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, UCRED.size))
    if not isinstance(sock.getpeername(), str | bytes):
        raise OSError(EAFNOSUPPORT, "not a Unix socket")
    if uid == 0xFFFFFFFF or gid == 0xFFFFFFFF:
        raise OSError(ENOTCONN, "not connected")
    return Peer(pid or None, uid, gid)


@dataclass(frozen=True, slots=True)
class Received:
    data: bytes
    cred: Peer | None
    flags: int
    address: Any
    fds: tuple[int, ...] = ()


def receive_by_hand(sock: socket, bufsize: int, max_fds: int = 0) -> Received:
    """What `messages.receive` does with credentials enabled, and nothing else.

    It is written as a careful reader would write it.
    """
    room = ROOM if max_fds == 0 else CMSG_SPACE(UCRED.size) + CMSG_LEN(4 * max_fds)
    data, control, flags, address = sock.recvmsg(bufsize, room, CLOEXEC)
    cred = None
    fds = array("i")
    for level, kind, payload in control:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if level == SOL_SOCKET and kind == SCM_CREDENTIALS:
            if len(payload) != UCRED.size:
                raise OSError(EMSGSIZE, "cut off")
            pid, uid, gid = UCRED.unpack(payload)
            if uid == 0xFFFFFFFF or gid == 0xFFFFFFFF:
                continue
            if pid == 0 and uid == gid == 65534:
                continue
            if pid == 0 and not data and sock.getsockopt(SOL_SOCKET, SO_TYPE) == SOCK_STREAM:
                continue
            cred = Peer(pid or None, uid, gid)
    if flags & CTRUNC and cred is None:
        raise OSError(EMSGSIZE, "cut off")
    return Received(data, cred, flags & ~CLOEXEC, address, tuple(fds))


class Ucred(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_int), ("uid", ctypes.c_uint), ("gid", ctypes.c_uint))


def ctypes_idiom(sock: socket) -> Ucred:
    cred = Ucred()
    size = ctypes.c_uint(ctypes.sizeof(cred))
    if LIBC.getsockopt(sock.fileno(), SOL_SOCKET, SO_PEERCRED, ctypes.byref(cred), ctypes.byref(size)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return cred


def compile_c() -> ctypes.CDLL:
    with TemporaryDirectory() as tmp:
        source, library = Path(tmp, "loop.c"), Path(tmp, "loop.so")
        source.write_text(C_SOURCE)
        compiler = shlex.split(os.environ.get("CC") or "cc")
        subprocess.run([*compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
        compiled = ctypes.CDLL(str(library))  # stays mapped when the file is gone
    compiled.c_loop.argtypes = ctypes.c_int, ctypes.c_long
    compiled.c_groups.argtypes = ctypes.c_int, ctypes.c_void_p, ctypes.c_long
    return compiled


class Times(dict[str, list[float]]):
    """The nanoseconds of a call of each row, in each round."""

    def measure(self, rows: Rows, scope: dict[str, Any], rounds: int, calls: int) -> None:
        timers = {name: (Timer(statement, globals=scope), batch) for name, (statement, batch) in rows.items()}
        for _ in range(rounds):
            for name, (timer, batch) in timers.items():
                number = max(1, calls // batch)
                self.setdefault(name, []).append(timer.timeit(number) / number / batch * 1e9)

    def ratio(self, name: str, base: str) -> float:
        """The median of each round's ratio.

        Its parts lie milliseconds apart: a slow spell of the machine hits both.
        """
        pairs = zip(self.get(name, [nan]), self.get(base, [nan]), strict=False)
        return median(one / other for one, other in pairs)


@contextmanager
def supplementary_groups() -> Iterator[None]:
    """Be in three of them, if root permits it."""
    own = os.getgroups()
    try:
        if os.geteuid() == 0:
            os.setgroups([4, 27, 1000])
        yield
    finally:
        if os.geteuid() == 0:
            os.setgroups(own)


def by_group() -> peercred.AllowList:
    """A list that such a process is on by its last group alone."""
    with supplementary_groups():
        return peercred.AllowList(uids={os.geteuid() + 1}, gids=(os.getgroups() or [os.getegid()])[-1:])


def calls(options: argparse.Namespace) -> None:
    times = Times()
    missing = {} if get_peer_pid_uid_gid else {UNIX_CRED: "not installed"}
    with supplementary_groups():
        sock, other = socketpair(AF_UNIX)  # whose ends have their maker's groups
    with sock, other:
        scope = {**globals(), "sock": sock, "fd": sock.fileno(), "C": compile_c()}
        scope["allowed"] = peercred.AllowList(uids={os.geteuid()})
        scope["allowed_group"] = by_group()
        scope["allowed_long"] = peercred.AllowList(uids={os.geteuid(), *range(100_000, 200_000)})
        try:
            peercred.read_label(sock)
        except peercred.UnsupportedError:
            missing["peercred.read_label(sock)"] = "unsupported"
        times.measure(
            {name: CALLS[name] for name in CALLS if name not in missing}, scope, options.rounds, options.calls
        )

    def row(name: str) -> tuple[str, ...]:
        time = missing.get(name) or f"{median(times[name]):.0f}"
        return name, time, f"{times.ratio(name, C_LOOP):.2f}", f"{times.ratio(name, SAME_JOB):.2f}"

    title = f"calls: medians of {options.rounds} rounds of {options.calls}, and of each round's ratios"
    table(title, ("", "ns", "/ C loop", "/ same job"), *map(row, CALLS))
    target("read / stdlib, same job", times.ratio(READ, SAME_JOB), at_most=0.84)
    target("read / C loop", times.ratio(READ, C_LOOP), at_most=2.4)
    target("AllowList.require / read", times.ratio(REQUIRE, READ), at_most=1.1)
    target("AllowList.require, 100,000 uids / read", times.ratio(REQUIRE_LONG, READ), at_most=1.1)
    target("AllowList.require, by group / read", times.ratio(REQUIRE_GROUP, READ), at_most=2)
    target("unix-cred / read", times.ratio(UNIX_CRED, READ), at_least=1.7)


def groups(options: argparse.Namespace) -> None:
    own, times = os.getgroups(), Times()
    with ExitStack() as stack:
        gids = array("I", bytes(4 * 65536))
        scope = {**globals(), "C": compile_c(), "gids": gids, "address": gids.buffer_info()[0]}
        for number in (0, 1, 8, 16, 32, 65536):
            try:
                os.setgroups(range(1000, 1000 + number))  # a socketpair's ends have its maker's groups as peer's
            except PermissionError:
                print("\ngroups: not measured, for only root may change its groups")
                return
            sock, _ = map(stack.enter_context, socketpair(AF_UNIX))
            scope[f"sock{number}"] = sock
        os.setgroups(own)
        few: Rows = {f"read_groups, {number} groups": (f"read_groups(sock{number})", 1) for number in (0, 1, 8, 16, 32)}
        few |= {READ: ("read(sock0)", 1), "C loop, 16 groups": ("C.c_groups(sock16.fileno(), address, 1000)", 1000)}
        times.measure(few, scope, options.rounds, options.calls)
        in_c = "C.c_groups(sock65536.fileno(), address, 1); tuple(gids)"
        many: Rows = {ALL_IN_C: (in_c, 1), ALL_GROUPS: ("read_groups(sock65536)", 1)}
        times.measure(many, scope, options.rounds, max(1, options.calls // 1000))
    rows = ((name, f"{median(ns):.0f}", f"{times.ratio(name, READ):.2f}") for name, ns in times.items())
    table("groups: medians, and of each round's ratios", ("", "ns", "/ read"), *rows)
    target("read_groups, 16 groups / read", times.ratio("read_groups, 16 groups", READ), at_most=1.3)
    target("65,536 groups: read_groups / C", times.ratio(ALL_GROUPS, ALL_IN_C), at_most=1.5)


def accept(options: argparse.Namespace) -> None:
    allowed = peercred.AllowList(uids={os.geteuid()})
    checks: dict[str, Callable[[socket], Any]] = {
        "bare": lambda conn: None,
        SAME_JOB: same_job,
        "AllowList.require, 1 uid": allowed.require,
        "AllowList.require, a group": by_group().require,
    }
    rates: dict[str, list[float]] = {}
    with socket(AF_UNIX) as server:
        server.bind("")
        server.listen(128)
        address = server.getsockname()
        with supplementary_groups():
            client = os.fork()
            while client == 0:
                with socket(AF_UNIX) as conn:
                    conn.connect(address)
        try:
            for _ in range(options.rounds):
                for name, check in checks.items():
                    start = perf_counter_ns()
                    for _ in range(options.calls // 10):
                        with server.accept()[0] as conn:
                            check(conn)
                    rates.setdefault(name, []).append(options.calls // 10 / (perf_counter_ns() - start) * 1e9)
        finally:
            os.kill(client, SIGKILL)
            os.waitpid(client, 0)

    def part(name: str) -> float:
        ratios: list[float] = [one / bare for one, bare in zip(rates[name], rates["bare"], strict=True)]
        return median(ratios)

    rows = ((name, f"{median(rates[name]):.0f}", f"{part(name):.2f}") for name in checks)
    table("accept: connections per second, and of each round's bare loop", ("", "1/s", "/ bare"), *rows)
    target("require by uid / stdlib, same job", part("AllowList.require, 1 uid") / part(SAME_JOB), at_least=1)
    target("require by a group / bare", part("AllowList.require, a group"), at_least=0.66)


def threads(options: argparse.Namespace) -> None:
    """On a free-threaded build the numbers grow with the threads."""
    candidates: dict[str, Callable[[socket], Any]] = {
        "stdlib, two calls": lambda sock: (sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 12), sock.getpeername()),
        READ: read,
    }

    def rate(function: Callable[[socket], Any], number: int) -> float:
        def run(sock: socket) -> None:
            ready.wait()
            for _ in range(options.calls):
                function(sock)

        with ExitStack() as stack:
            pairs = [tuple(map(stack.enter_context, socketpair(AF_UNIX))) for _ in range(number)]
            ready = threading.Barrier(number + 1)
            workers = [threading.Thread(target=run, args=pair[:1]) for pair in pairs]
            for worker in workers:
                worker.start()
            ready.wait()
            start = perf_counter_ns()
            for worker in workers:
                worker.join()
            return float(number * options.calls / (perf_counter_ns() - start) * 1e9)

    numbers = 1, 2, 4, 8
    rates: dict[str, list[list[float]]] = {name: [[] for _ in numbers] for name in candidates}
    for _ in range(max(1, options.rounds // 5)):
        for name, function in candidates.items():
            for column, number in zip(rates[name], numbers, strict=True):
                column.append(rate(function, number))
    rows = ((name, *(f"{median(column):.0f}" for column in columns)) for name, columns in rates.items())
    table("threads: calls per second of so many threads", ("", *map(str, numbers)), *rows)


def latency(options: argparse.Namespace) -> None:
    candidates = {SAME_JOB: same_job, READ: read}
    samples: dict[str, list[int]] = {name: [] for name in candidates}
    done = threading.Event()

    def spin() -> None:
        while not done.is_set():
            pass

    spinners = [threading.Thread(target=spin, daemon=True) for _ in range(2)]
    sock, other = socketpair(AF_UNIX)
    with sock, other:
        for spinner in spinners:
            spinner.start()
        deadline = monotonic() + 30  # a call that lets go of the GIL takes 10 ms to get it back, and there are many
        while len(samples[READ]) < options.calls and monotonic() < deadline:
            for name, function in candidates.items():
                start = perf_counter_ns()
                function(sock)
                samples[name].append(perf_counter_ns() - start)
        done.set()
        for spinner in spinners:
            spinner.join()
    p99 = {name: sorted(values)[len(values) * 99 // 100] for name, values in samples.items()}
    rows = ((name, f"{median(values):.0f}", f"{p99[name]}") for name, values in samples.items())
    table(f"latency: {len(samples[READ])} calls of each beside two busy threads", ("", "p50 ns", "p99 ns"), *rows)
    target("p99 of read / p99 of stdlib, same job", p99[READ] / p99[SAME_JOB], at_most=2)


def receiving(options: argparse.Namespace) -> None:
    candidates: dict[str, tuple[Callable[[socket], Any], int]] = {
        RECVMSG: (lambda sock: sock.recvmsg(4096, ROOM), 0),
        BY_HAND: (lambda sock: receive_by_hand(sock, 4096), 0),
        RECEIVE: (lambda sock: messages.receive(sock, 4096), 0),
        BY_HAND_FD: (lambda sock: receive_by_hand(sock, 4096, 1), 1),
        RECEIVE_FD: (lambda sock: messages.receive(sock, 4096, max_fds=1), 1),
    }
    times = Times()
    sock, other = socketpair(AF_UNIX, SOCK_DGRAM)
    with sock, other:
        sock.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
        for _ in range(options.rounds):
            for name, (function, descriptors) in candidates.items():
                taken, number = 0, max(1, options.calls // QUEUED)
                for _ in range(number):
                    for _ in range(QUEUED):
                        messages.send(other, b"READY=1", fds=[0] * descriptors)
                    start = perf_counter_ns()
                    received = [function(sock) for _ in range(QUEUED)]
                    taken += perf_counter_ns() - start
                    for each in received if descriptors else ():
                        os.close((each.detach_fds() if isinstance(each, messages.Message) else each.fds)[0])
                times.setdefault(name, []).append(taken / number / QUEUED)
    rows = []
    for name, ns in times.items():
        base = BY_HAND_FD if candidates[name][1] else BY_HAND
        rows.append((name, f"{median(ns):.0f}", f"{times.ratio(name, base):.2f}"))
    table("messages: medians, and of each round's ratios", ("", "ns", "/ by hand"), *rows)
    target("receive / recvmsg, parsed by hand", times.ratio(RECEIVE, BY_HAND), at_most=1.4)
    target("the same with a descriptor", times.ratio(RECEIVE_FD, BY_HAND_FD), at_most=1.6)


def imports(options: argparse.Namespace) -> None:
    command = [sys.executable, "-I", "-c", IMPORTS, str(Path(peercred.__file__).parent.parent)]
    outputs = [subprocess.check_output(command, text=True).split() for _ in range(options.rounds)]
    before, after = (median(map(int, column)) / 1e6 for column in zip(*outputs, strict=True))
    rows = (("import dataclasses", f"{before:.2f}"), ("import peercred, after it", f"{after:.2f}"))
    table(f"import: {options.rounds} fresh interpreters", ("", "median ms"), *rows)
    target("import peercred, after dataclasses, in ms", after, at_most=2)


def growth(options: argparse.Namespace) -> None:
    def footprint() -> tuple[float, int]:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024, len(os.listdir("/proc/self/fd"))

    def fails(conn: Any) -> bool:
        try:
            read(conn)
        except (OSError, TypeError):
            return True
        return False

    sock, other = socketpair(AF_UNIX)
    with sock, other, socket(AF_UNIX) as unconnected, socket(AF_UNIX) as listening:
        listening.bind("")  # an abstract address of the kernel's choice: no file to remove
        listening.listen()
        closed = os.dup(sock.fileno())
        os.close(closed)
        conns = [sock, unconnected, sock.fileno(), listening, other, closed, other.fileno(), "a str"]
        sum(map(fails, islice(cycle(conns), options.growth_calls // 10)))  # fills caches and free lists
        rss_before, descriptors_before = footprint()
        failed = sum(map(fails, islice(cycle(conns), options.growth_calls)))
        rss, descriptors = footprint()
    table(f"growth: {options.growth_calls} calls, {failed} of which failed")
    target("growth of RSS, in KiB", rss - rss_before, at_most=256)
    target("growth of open descriptors", descriptors - descriptors_before, at_most=0)


def table(title: str, *rows: tuple[str, ...]) -> None:
    print(f"\n{title}")
    for name, *cells in rows:
        print(f"  {name:<42}", *(f"{cell.replace('nan', '-'):>13}" for cell in cells))


def target(what: str, measured: float, at_least: float = -inf, at_most: float = inf) -> None:
    goal = f"<= {at_most}" if at_most < inf else f">= {at_least}"
    verdict = "not measured" if isnan(measured) else "reached" if at_least <= measured <= at_most else "missed"
    number = "-" if isnan(measured) else f"{measured:.2f}"
    print(f"  {what:<42} {number:>13}   target {goal}: {verdict}", flush=True)


SECTIONS = {
    "calls": calls,
    "groups": groups,
    "accept": accept,
    "latency": latency,
    "threads": threads,
    "messages": receiving,
    "import": imports,
    "growth": growth,
}


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # A string, for argparse checks the default as if it were one choice.
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, "all"], default="all", help="default: all")
    for option, default, text in (
        ("--rounds", 30, "rounds of calls, and interpreters of import"),
        ("--calls", 10_000, "calls of each row in a round, and samples of latency"),
        ("--growth-calls", 1_000_000, "calls of growth"),
    ):
        parser.add_argument(option, type=positive, default=default, metavar="N", help=f"{text} (default: {default})")
    options = parser.parse_args()
    print(platform.python_implementation(), platform.python_version(), platform.platform())
    for name in SECTIONS if "all" in options.sections else options.sections:
        SECTIONS[name](options)


if __name__ == "__main__":
    main()
