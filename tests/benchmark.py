"""What a call of peercred costs, beside other ways to the same answer. A script, which pytest does not collect:

    python tests/benchmark.py [calls] [threads] [import] [growth]

calls    median time of one call on one connected socket, as a multiple of the same two system calls in a bare
         C loop, compiled here by $CC or cc, and of the standard library doing the same job
threads  median and 99th percentile of a single call while two other threads keep the interpreter busy
import   what `import peercred` takes when dataclasses, most of its cost, is imported already
growth   memory and descriptors gained by a million calls, half of which fail

What a ratio compares is measured in the same run, taking turns, for no two machines are alike and none is quiet.
A missed target is information: it is printed, and the exit code stays 0. Linux only. With unix-cred installed
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
from collections.abc import Callable
from dataclasses import dataclass
from errno import ENOTCONN
from itertools import cycle, islice
from math import inf, isnan, nan
from pathlib import Path
from socket import AF_UNIX, SO_ACCEPTCONN, SO_PEERCRED, SOL_SOCKET, socket, socketpair
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter_ns
from timeit import Timer
from typing import Any

import peercred
from peercred import read

try:
    from unix_cred import get_peer_pid_uid_gid
except ImportError:
    get_peer_pid_uid_gid = None

C_LOOP, SAME_JOB, UNIX_CRED, READ = "C loop", "stdlib, same job", "unix-cred", "peercred.read(sock)"

# The rows of the calls section. A statement sees this module's names, and `scope` in calls().
CALLS = {
    C_LOOP: "c_loop(fd, calls)",
    "stdlib, tuple idiom": "struct.unpack('3i', sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))",
    SAME_JOB: "same_job(sock)",
    "ctypes, getsockopt": "ctypes_idiom(sock)",
    UNIX_CRED: "get_peer_pid_uid_gid(sock)",
    READ: "read(sock)",
    "peercred.read(fd)": "read(fd)",
}

C_SOURCE = """
#define _GNU_SOURCE
#include <sys/socket.h>

void c_loop(int fd, long calls)
{
    while (calls-- > 0) {
        struct ucred cred;
        int listening;
        socklen_t length = sizeof cred, size = sizeof listening;
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &length);
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size);
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


@dataclass(frozen=True, slots=True)
class Peer:
    pid: int | None
    uid: int
    gid: int


def same_job(sock: socket) -> Peer:
    """What `read` does, as a careful reader would write it without peercred."""
    if sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
        raise OSError(ENOTCONN, "listening")
    pid, uid, gid = UCRED.unpack(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, UCRED.size))
    if uid == 0xFFFFFFFF:
        raise OSError(ENOTCONN, "not connected")
    return Peer(pid=pid or None, uid=uid, gid=gid)


class Ucred(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_int), ("uid", ctypes.c_uint), ("gid", ctypes.c_uint))


def ctypes_idiom(sock: socket) -> Ucred:
    cred = Ucred()
    size = ctypes.c_uint(ctypes.sizeof(cred))
    if LIBC.getsockopt(sock.fileno(), SOL_SOCKET, SO_PEERCRED, ctypes.byref(cred), ctypes.byref(size)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return cred


def compile_c_loop() -> Callable[[int, int], None]:
    with TemporaryDirectory() as tmp:
        source, library = Path(tmp, "loop.c"), Path(tmp, "loop.so")
        source.write_text(C_SOURCE)
        compiler = shlex.split(os.environ.get("CC") or "cc")
        subprocess.run([*compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
        loop = ctypes.CDLL(str(library)).c_loop  # stays mapped when the file is gone
    loop.argtypes, loop.restype = (ctypes.c_int, ctypes.c_long), None
    return loop


def calls(options: argparse.Namespace) -> None:
    missing = {} if get_peer_pid_uid_gid else {UNIX_CRED: "not installed"}
    sock, other = socketpair(AF_UNIX)
    with sock, other:
        scope = {**globals(), "sock": sock, "fd": sock.fileno(), "calls": options.calls}
        try:
            scope["c_loop"] = compile_c_loop()
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            print(error, file=sys.stderr)
            missing[C_LOOP] = "not compiled"
        timers = {name: Timer(statement, globals=scope) for name, statement in CALLS.items() if name not in missing}
        ns = {name: [nan] for name in missing} | {name: [] for name in timers}
        for _ in range(options.rounds):
            for name, timer in timers.items():
                # The C loop makes all its calls in one statement, or this would time how ctypes gets there.
                seconds = timer.timeit(1 if name == C_LOOP else options.calls)
                ns[name].append(seconds / options.calls * 1e9)

    def ratio(name: str, base: str) -> float:
        """Of each round, whose parts lie milliseconds apart: a slow spell of the machine hits both."""
        return median(one / other for one, other in zip(ns[name], ns[base], strict=False))

    def row(name: str) -> tuple[str, ...]:
        time = missing.get(name) or f"{median(ns[name]):.0f}"
        return name, time, f"{ratio(name, C_LOOP):.2f}", f"{ratio(name, SAME_JOB):.2f}"

    title = f"calls: medians of {options.rounds} rounds of {options.calls}, and of each round's ratios"
    table(title, ("", "ns", "/ C loop", "/ same job"), *map(row, CALLS))
    target("read / stdlib, same job", ratio(READ, SAME_JOB), at_most=0.85)
    target("read / C loop", ratio(READ, C_LOOP), at_most=2.4)
    target("unix-cred / read", ratio(UNIX_CRED, READ), at_least=1.7)


def threads(options: argparse.Namespace) -> None:
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
    table(f"threads: {len(samples[READ])} calls of each beside two busy threads", ("", "p50 ns", "p99 ns"), *rows)
    target("p99 of read / p99 of stdlib, same job", p99[READ] / p99[SAME_JOB], at_most=2)


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


SECTIONS = {"calls": calls, "threads": threads, "import": imports, "growth": growth}


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
        ("--calls", 10_000, "calls of each row in a round, and samples of threads"),
        ("--growth-calls", 1_000_000, "calls of growth"),
    ):
        parser.add_argument(option, type=positive, default=default, metavar="N", help=f"{text} (default: {default})")
    options = parser.parse_args()
    print(platform.python_implementation(), platform.python_version(), platform.platform())
    for name in SECTIONS if "all" in options.sections else options.sections:
        SECTIONS[name](options)


if __name__ == "__main__":
    main()
