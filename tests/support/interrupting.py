"""A signal handler that raises at a chosen moment, for test_signals.py.

`prepared` watches the table of descriptors around a call. `raising_at_bytecode`
and `raising_at_call` raise at one place of the package's Python code after the
other. `storm` raises from real timers.
"""

from __future__ import annotations

import contextlib
import dis
import itertools
import os
import random
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

from questions import OPENING

import peercred
from peercred import messages

PACKAGE = str(Path(peercred.__file__).parent)

# Where no handler can run, and nothing is raised. Python runs handlers where a
# call ends, where a function begins and where a loop goes back. An int that is
# returned has no owner for one bytecode, the return itself, which the compiler
# leaves outside of every `try`. The first and the last bytecode of an `except`
# are outside too, and so is what belongs to no line: the interpreter would keep
# the exception that was being handled, and its frames.
BETWEEN_TRIES = {"PUSH_EXC_INFO", "POP_EXCEPT"}
HANDS_OVER = {
    function.__code__
    for function in (
        *(question.function for question in OPENING),
        messages.Message.detach_pidfd,
        messages.Message.detach_fds,
        messages.Message.open_proc,
    )
}

# What is interrupted. A case yields a call and is sent what it returned, or
# None if it was interrupted. Then it closes what is its own.
Call: TypeAlias = Callable[[], Any]
Case: TypeAlias = Callable[[socket.socket, socket.socket], Generator[Call, Any, None]]


class Interrupted(BaseException):
    """What the handler raises."""


class Table:
    """This process's descriptors, and what a call does to them.

    A number that becomes free is taken at once, as another thread may take it.
    """

    def __init__(self) -> None:
        self.canary = os.memfd_create("canary")
        self.before = self.now()
        self.opened: set[int] = set()
        self.replaced: set[int] = set()
        self.closed_twice: set[int] = set()
        # The next ones that the kernel gives are the lowest.
        self.next = set(itertools.islice((number for number in itertools.count() if number not in self.before), 20))
        self.poll = select.poll()
        for number in self.next:
            self.poll.register(number, 0)

    def look(self) -> None:
        """Note what was opened, and take the place of what was closed."""
        closed = {number for number, event in self.poll.poll(0) if event == select.POLLNVAL}
        self.opened |= self.next - closed
        self.closed_twice |= closed & self.replaced
        for number in closed & self.opened:
            os.dup2(self.canary, number)
            self.replaced.add(number)

    def __enter__(self) -> Table:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        """All that came is closed, and what took its place is not."""
        self.look()
        now = self.now()
        canaries = {number for number, file in now.items() if file == now[self.canary]}
        for number in canaries:
            os.close(number)
        if failed:
            return
        assert self.closed_twice == set()
        assert now.keys() - self.before.keys() - canaries == set(), "left open"
        assert {number: now.get(number) for number in self.before} == self.before

    @staticmethod
    def now() -> dict[int, tuple[int, int]]:
        """The file that each open descriptor refers to."""
        found = {}
        for number in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):  # the one that lists the directory
                status = os.fstat(number)
                found[number] = status.st_dev, status.st_ino
        return found


def ours(frame: FrameType) -> bool:
    """Whether this is code of the package."""
    return frame.f_code.co_filename.startswith(PACKAGE)


@contextlib.contextmanager
def prepared(case: Case) -> Generator[tuple[Table, Call], None, None]:
    """The table and the call; afterwards, all is closed, once."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with receiver, sender, Table() as table:
        steps = case(receiver, sender)
        calls, results = [next(steps)], []
        table.look()

        def function() -> None:
            # What is returned is in the list before a handler can raise. No
            # variable keeps the call, and thus the message, alive.
            results.extend(itertools.starmap(calls.pop(), [()]))

        yield table, function
        calls.clear()
        with contextlib.suppress(StopIteration):
            steps.send(results.pop() if results else None)


@contextlib.contextmanager
def raising_at_bytecode(number: int, look: Callable[[], None]) -> Generator[list[str], None, None]:
    """Raise at this bytecode of the package, counted from 0.

    The list says where that was. It stays empty if there are not so many.
    """
    where: list[str] = []

    def trace(frame, event, _):
        nonlocal number
        if not ours(frame):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            code = frame.f_code
            name = dis.opname[code.co_code[frame.f_lasti]]
            returned = name.startswith("RETURN_") and code in HANDS_OVER
            if not (returned or name in BETWEEN_TRIES or frame.f_lineno is None):
                number -= 1
                if number < 0:
                    where.append(f"{code.co_filename}:{frame.f_lineno} {code.co_name} {name}")
                    raise Interrupted
        return trace

    def profile(frame, event, _):
        # Not at each step of a generator, which takes long.
        if event.endswith("return") and ours(frame) and not frame.f_code.co_name.startswith("<"):
            look()

    previous = sys.gettrace(), sys.getprofile()
    sys.setprofile(profile)
    sys._getframe().f_trace_opcodes = True  # of any frame: Python 3.12 asks for it at settrace()
    sys.settrace(trace)
    try:
        yield where
    finally:
        sys.settrace(previous[0])
        sys.setprofile(previous[1])


@contextlib.contextmanager
def raising_at_call(number: int, look: Callable[[], None]) -> Generator[list[str], None, None]:
    """The same where a function of the package begins, or a call in one ends.

    These are the places where Python runs handlers. Coverage can be measured
    meanwhile, because nothing else traces.
    """
    where: list[str] = []

    def profile(frame, event, function):
        nonlocal number
        if not ours(frame):
            return
        if event.endswith("return"):
            look()
        if event in ("call", "c_return"):
            number -= 1
            if number < 0:
                where.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {event} {function}")
                raise Interrupted

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield where
    finally:
        sys.setprofile(previous)


def spin(seconds: float) -> None:
    """Wait, busily. (A loop in a `try` is not all inside of it.)"""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def storm(case: Case, interruptions: int) -> int:
    """Raise from real timers, one at a time, about when the call is made.

    How often was that inside of the package? The timer is longer than a call,
    so that the call waits for it. How long, the last outcome says.
    """
    inside = 0

    def handler(_, frame):
        nonlocal inside
        while frame is not None and not ours(frame):
            frame = frame.f_back
        inside += frame is not None
        raise Interrupted

    sys.settrace(None)  # what measures coverage has locks, which an exception in its code would leave locked
    signal.signal(signal.SIGALRM, handler)
    moments, wait = random.Random(0), 1e-4
    for _ in range(30 * interruptions):
        if inside >= interruptions:
            break
        with prepared(case) as (table, function):
            began = False
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4)
                spin(moments.uniform(0.9, 1) * wait)
                began = True
                function()
                signal.setitimer(signal.ITIMER_REAL, 0)
                # Nothing is sent, but Python looks for what has come already.
                signal.pthread_kill(threading.get_ident(), 0)
                wait *= 1.02
            except Interrupted:
                table.look()  # as long as the traceback keeps frames alive
                wait *= 1 if began else 0.98
    return inside
