"""A signal handler that raises, at any moment: no descriptor is left behind, and none is closed twice.

First at each bytecode of the package in turn, then by real timers.
"""

from __future__ import annotations

import contextlib
import dis
import itertools
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import pytest
from peers import SO_PASSPIDFD, SO_PASSRIGHTS, call, needs_pidfd, outcome

import peercred
from peercred import messages

pytestmark = needs_pidfd

PACKAGE = str(Path(peercred.__file__).parent)

# Where no handler can run, and nothing is raised. Python runs handlers where a
# call ends, where a function begins and where a loop goes back. An int that is
# returned has no owner for one bytecode, the return itself, which the compiler
# leaves outside of every `try`. The first and the last bytecode of an `except`
# are outside too, and so is what belongs to no line: the interpreter would keep
# the exception that was being handled, and its frames.
BETWEEN_TRIES = {"PUSH_EXC_INFO", "POP_EXCEPT"}
HANDS_OVER = {
    function.__code__ for function in (peercred.open_pidfd, messages.Message.detach_pidfd, messages.Message.detach_fds)
}


class Interrupted(BaseException):
    """What the handler raises."""


def identity(number: int) -> tuple[int, int] | None:
    """Which file a descriptor refers to; None if it is not open."""
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class Table:
    """This process's descriptors. A number that becomes free is taken at once, as another thread may take it."""

    def __init__(self) -> None:
        self.canary = os.memfd_create("canary")
        self.before = self.now()
        self.opened: set[int] = set()
        self.replaced: set[int] = set()

    def look(self) -> None:
        listed = set(map(int, os.listdir("/proc/self/fd")))  # and the one that lists
        others = (listed | self.opened) - self.before.keys() - self.replaced
        present = {number for number in others if identity(number)}
        self.opened |= present
        for number in (others - present) & self.opened:
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
        assert self.opened - self.replaced == set(), "left open"
        assert self.replaced - canaries == set(), "closed twice"
        assert {number: now.get(number) for number in self.before} == self.before

    @staticmethod
    def now() -> dict[int, tuple[int, int] | None]:
        found = {number: identity(number) for number in map(int, os.listdir("/proc/self/fd"))}
        return {number: file for number, file in found.items() if file}


# What is interrupted. A case yields a call, is sent what it returned, or None if
# it was interrupted, and closes what is then its own.
Call: TypeAlias = Callable[[], Any]
Case: TypeAlias = Callable[[socket.socket, socket.socket], Generator[Call, Any, None]]


def attach(sender, number):
    """Send a message with descriptors."""
    with open(os.devnull) as file:
        socket.send_fds(sender, [b"x"], [file.fileno()] * number)


def received(receiver, sender):
    """A message with descriptors."""
    messages.enable(receiver, pidfd=True)
    attach(sender, 2)
    message = messages.receive(receiver, 100, max_fds=2)
    assert message.pidfd is not None
    assert len(message.fds) == 2
    return message


def receiving(attached, max_fds, label=False):
    """With a pidfd and descriptors."""

    def case(receiver, sender):
        messages.enable(receiver, pidfd=True, label=label)
        attach(sender, attached)
        message = yield partial(messages.receive, receiver, 100, max_fds=max_fds)
        if message is not None:
            with message:
                assert (message.data, len(message.fds)) == (b"x", min(attached, max_fds))

    return case


class Refused(socket.socket):
    """One that another thread turns SO_PASSCRED off of while receive() waits for a message."""

    def late(self, *args):
        self.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        return super().recvmsg(*args)


def refusing(receiver, sender):
    """It has received descriptors, and raises an error of its own."""
    messages.enable(receiver)
    attach(sender, 5)

    def receive(sock):
        with pytest.raises(OSError, match="cut off"):
            messages.receive(sock, 100)

    with Refused(fileno=os.dup(receiver.fileno())) as sock:
        sock.recvmsg = sock.late
        yield partial(receive, sock)


def closing(receiver, sender):
    """Close, and close again what is left."""
    message = received(receiver, sender)
    yield message.close
    message.close()


def closing_and_dropping(receiver, sender):
    """Close, and leave what is left to Python."""
    yield received(receiver, sender).close


def leaving_a_with_block(receiver, sender):
    """The same, by `with`."""

    def use(message):
        with message:
            pass

    yield partial(use, received(receiver, sender))


def dropping(receiver, sender):
    """Leave all to Python: what is raised meanwhile, Python drops too."""
    held = [received(receiver, sender)]
    yield held.clear


def detaching_pidfd(receiver, sender):
    """The pidfd is the message's or the caller's."""
    message = received(receiver, sender)
    pidfd = message.pidfd
    detached = yield message.detach_pidfd
    assert (message.pidfd, detached) in ((pidfd, None), (None, pidfd))
    message.close()
    if detached is not None:
        os.close(detached)


def detaching_fds(receiver, sender):
    """Likewise the descriptors that were attached; the message is dropped."""
    message = received(receiver, sender)
    fds = message.fds
    detached = yield message.detach_fds
    assert (message.fds, detached) in ((fds, None), ((), fds))
    del message
    for fd in detached or ():
        os.close(fd)


def opening_a_pidfd(receiver, sender):
    """It is the caller's, if there is one."""
    pidfd = yield partial(peercred.open_pidfd, receiver)
    if pidfd is not None:
        os.close(pidfd)


def enabling(receiver, sender):
    """All options are as wanted, or all as before."""
    numbers = socket.SO_PASSCRED, SO_PASSPIDFD, socket.SO_PASSSEC, SO_PASSRIGHTS
    messages.enable(receiver)
    before = [outcome(receiver.getsockopt, socket.SOL_SOCKET, number) for number in numbers]
    assert before[:3] == [1, 0, 0]
    yield partial(messages.enable, receiver, creds=False, pidfd=True, label=True, fds=False)
    after = [outcome(receiver.getsockopt, socket.SOL_SOCKET, number) for number in numbers]
    assert after in (before, [0, 1, 1, 0 if before[3] == 1 else before[3]])  # before Linux 6.16 there is no fourth


def sending(receiver, sender):
    """The message is sent as a whole, or not at all."""
    with open(os.devnull) as file:
        cred = peercred.Cred(os.getpid(), os.getuid(), os.getgid())
        sent = yield partial(messages.send, sender, [b"x"], cred=cred, fds=[0, file])
    receiver.setblocking(False)
    try:
        data, fds, *_ = socket.recv_fds(receiver, 100, 9)
    except BlockingIOError:
        assert sent is None
        return
    for fd in fds:
        os.close(fd)
    assert (data, len(fds)) == (b"x", 2)


def letting_in(receiver, sender):
    """Nothing is opened."""
    yield partial(peercred.AllowList(gids={os.getgid()}).require, receiver)


def making_a_list(receiver, sender):
    """Files of /proc are opened."""
    yield partial(peercred.AllowList, uids={"root"}, gids={0})


CASES = {
    "receive a pidfd": receiving(0, 0),
    "receive fewer than max_fds": receiving(1, 2),
    "receive max_fds": receiving(2, 2),
    "receive more than max_fds": receiving(4, 2),
    "receive only strays": receiving(3, 0, label=True),
    "receive some, and strays": receiving(4, 2, label=True),
    "receive, and refuse": refusing,
    "close": closing,
    "close, and drop": closing_and_dropping,
    "with": leaving_a_with_block,
    "drop": dropping,
    "detach_pidfd": detaching_pidfd,
    "detach_fds": detaching_fds,
    "open_pidfd": opening_a_pidfd,
    "enable": enabling,
    "send": sending,
    "AllowList.require": letting_in,
    "AllowList": making_a_list,
}


def ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(PACKAGE)


@contextlib.contextmanager
def raising_at(bytecode: int, look: Callable[..., None]) -> Generator[list[str], None, None]:
    """Raise at this bytecode of the package, counted from 0: the list says where, if there are so many."""
    where: list[str] = []

    def trace(frame, event, _):
        nonlocal bytecode
        if not ours(frame):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            code = frame.f_code
            name = dis.opname[code.co_code[frame.f_lasti]]
            returned = name.startswith("RETURN_") and code in HANDS_OVER
            if not (returned or name in BETWEEN_TRIES or frame.f_lineno is None):
                bytecode -= 1
                if bytecode < 0:
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


@pytest.fixture
def seen(monkeypatch):
    """What was raised, be it by a finalizer, of which Python only reports it."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield seen


@contextlib.contextmanager
def prepared(case: Case) -> Generator[tuple[Table, Call], None, None]:
    """The table and the call; afterwards, all is closed, once."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with receiver, sender, Table() as table:
        steps = case(receiver, sender)
        calls, results = [next(steps)], []

        def function() -> None:
            # What is returned is in the list before a handler can raise. No
            # variable keeps the call, and thus the message, alive.
            results.extend(itertools.starmap(calls.pop(), [()]))

        yield table, function
        calls.clear()
        with contextlib.suppress(StopIteration):
            steps.send(results.pop() if results else None)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_raised_at_each_bytecode(case, seen):
    """Whatever is open afterwards is the caller's, and options are all old or all new."""
    for bytecode in itertools.count():
        with prepared(case) as (table, function), raising_at(bytecode, table.look) as where:
            try:
                function()
            except Interrupted:
                seen.append(Interrupted)
        if not where:
            break
        assert seen == [Interrupted], where
        seen.clear()
    assert bytecode > 25


def storm(case: Case, interruptions: int) -> int:
    """Raise from real timers, one at a time, in the course of the call: how often was that inside of the package?"""
    inside = 0

    def handler(_, frame):
        nonlocal inside
        while frame is not None and not ours(frame):
            frame = frame.f_back
        inside += frame is not None
        raise Interrupted

    sys.settrace(None)  # what measures coverage has locks, which an exception in its code would leave locked
    signal.signal(signal.SIGALRM, handler)
    moments, duration = random.Random(0), 1e-4
    for _ in range(30 * interruptions):
        if inside >= interruptions:
            break
        with prepared(case) as (table, function):
            try:
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-6, max(duration, 1e-5)))
                start = time.perf_counter()
                function()
                duration = 1.5 * (time.perf_counter() - start)  # longer if something else traces
                signal.setitimer(signal.ITIMER_REAL, 0)
                # Nothing is sent, but Python looks for what has come already.
                signal.pthread_kill(threading.get_ident(), 0)
            except Interrupted:
                table.look()  # as long as the traceback keeps frames alive
    return inside


STORMS = ("receive some, and strays", "close", "drop", "open_pidfd")


@pytest.mark.parametrize("name", STORMS)
def test_real_timers(name, seen, effort):
    """The same, in a process of its own."""
    inside = call(partial(storm, CASES[name], 300 * effort))
    assert inside > 0
