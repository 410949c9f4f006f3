"""A signal handler that raises, at any moment, while the package works.

No descriptor is left behind and none is closed twice; an answer is right, or
there is none. The handler raises at each bytecode of the package in turn, then
where calls end, then from real timers.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import socket
import sys
from functools import partial

import pytest
from interrupting import Interrupted, ours, prepared, raising_at_bytecode, raising_at_call, storm
from peers import (
    SO_PASSPIDFD,
    SO_PASSRIGHTS,
    SO_TIMESTAMP,
    attach,
    call,
    needs_cpython,
    needs_pidfd,
    outcome,
    own,
    own_effective,
)
from questions import OPENING, QUESTIONS, myself

import peercred
from peercred import messages

# Some cases leave it to Python to close something.
pytestmark = [
    needs_pidfd,
    needs_cpython("it raises at each bytecode, and objects are dropped at once"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def received(receiver, sender):
    """A message with a pidfd and two descriptors."""
    messages.enable(receiver, pidfd=True)
    attach(sender, b"x", 2)
    message = messages.receive(receiver, 100, max_fds=2)
    assert message.pidfd is not None
    assert len(message.fds) == 2
    return message


def receiving(attached, max_fds, label=False):
    """Receive a message with a pidfd, and descriptors."""

    def case(receiver, sender):
        messages.enable(receiver, pidfd=True, label=label)
        attach(sender, b"x", attached)
        message = yield partial(messages.receive, receiver, 100, max_fds=max_fds)
        if message is not None:
            with message:
                assert (message.data, len(message.fds)) == (b"x", min(attached, max_fds))

    return case


def refusing(receiver, sender):
    """Receive, and raise an error: there is no room for the credentials."""
    messages.enable(receiver)
    receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
    attach(sender, b"x", 5)

    def receive():
        with pytest.raises(OSError, match="no room for the message"):
            messages.receive(receiver, 100)

    yield receive


def closing(receiver, sender):
    """Close a message, and close again what is left."""
    message = received(receiver, sender)
    yield message.close
    message.close()


def closing_and_dropping(receiver, sender):
    """Close a message, and leave what is left to Python."""
    yield received(receiver, sender).close


def leaving_a_with_block(receiver, sender):
    """Close a message by `with`, and leave what is left to Python."""

    def use(message):
        with message:
            pass

    yield partial(use, received(receiver, sender))


def detaching_pidfd(receiver, sender):
    """Detach a pidfd: it is the message's or the caller's."""
    message = received(receiver, sender)
    pidfd = message.pidfd
    detached = yield message.detach_pidfd
    assert (message.pidfd, detached) in ((pidfd, None), (None, pidfd))
    message.close()
    if detached is not None:
        os.close(detached)


def detaching_fds(receiver, sender):
    """Detach descriptors: they are the message's or the caller's.

    The message is dropped then.
    """
    message = received(receiver, sender)
    fds = message.fds
    detached = yield message.detach_fds
    assert (message.fds, detached) in ((fds, None), ((), fds))
    del message
    for fd in detached or ():
        os.close(fd)


def opening_proc_of_a_sender(receiver, sender):
    """Open the directory of a message's sender, and keep its pidfd."""
    message = received(receiver, sender)
    pidfd = message.pidfd
    proc = yield message.open_proc
    assert message.pidfd == pidfd
    if proc is not None:
        os.close(proc)
    message.close()


def enabling(receiver, sender):
    """Enable: all options are as wanted, or all as before."""
    numbers = socket.SO_PASSCRED, SO_PASSPIDFD, socket.SO_PASSSEC, SO_PASSRIGHTS
    messages.enable(receiver)
    before = [outcome(receiver.getsockopt, socket.SOL_SOCKET, number) for number in numbers]
    assert before[:3] == [1, 0, 0]
    yield partial(messages.enable, receiver, creds=False, pidfd=True, label=True, fds=False)
    after = [outcome(receiver.getsockopt, socket.SOL_SOCKET, number) for number in numbers]
    assert after in (before, [0, 1, 1, 0 if before[3] == 1 else before[3]])  # before Linux 6.16 there is no fourth


def sending(receiver, sender):
    """Send: the message is sent as a whole, or not at all."""
    with open(os.devnull) as file:
        sent = yield partial(messages.send, sender, [b"x"], cred=own(), fds=[0, file])
    receiver.setblocking(False)
    try:
        data, fds, *_ = socket.recv_fds(receiver, 100, 9)
    except BlockingIOError:
        assert sent is None
        return
    for fd in fds:
        os.close(fd)
    assert (data, len(fds)) == (b"x", 2)


def failing_to_open_a_pidfd(receiver, sender):
    """Open a pidfd of a socket without a peer: there is none to close."""
    with socket.socket(socket.AF_UNIX) as unconnected:
        answer = yield partial(outcome, peercred.open_pidfd, unconnected)
    assert answer in (None, (peercred.NoPeerError, errno.ENOTCONN))


def asking(question):
    """Ask who the receiver's peer is: the answer is right, if there is one.

    A descriptor is the caller's then.
    """

    def case(receiver, sender):
        if question.supported:
            answer = yield partial(question.function, receiver)
            if answer is not None:
                assert question.describes(answer, myself())
                question.drop(answer)
        else:
            answer = yield partial(outcome, question.function, receiver)
            assert answer in (None, (peercred.UnsupportedError, errno.ENOPROTOOPT))

    return case


def deciding(function, expected):
    """Decide about the receiver's peer: rightly, if at all."""

    def case(receiver, sender):
        answer = yield partial(outcome, function, receiver)
        assert answer in (None, expected)

    return case


def making_a_list(receiver, sender):
    """Make a list, for which two sockets are opened."""
    yield partial(peercred.AllowList, uids={"root"}, gids={0})


BY_UID, BY_GROUP = peercred.AllowList(uids={os.geteuid()}), peercred.AllowList(gids={os.getegid()})
NOBODY = peercred.AllowList(gids={2**32 - 2})
REFUSED = peercred.NotAllowedError, errno.EACCES

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
    "detach_pidfd": detaching_pidfd,
    "detach_fds": detaching_fds,
    "open_proc of a sender": opening_proc_of_a_sender,
    "open_pidfd, and refuse": failing_to_open_a_pidfd,
    **{question.name: asking(question) for question in QUESTIONS},
    "enable": enabling,
    "send": sending,
    "AllowList": making_a_list,
    "AllowList.require, by uid": deciding(BY_UID.require, own_effective()),
    "AllowList.require, by group": deciding(BY_GROUP.require, own_effective()),
    "AllowList.require, and refuse": deciding(NOBODY.require, REFUSED),
    "AllowList.permits": deciding(lambda conn: NOBODY.permits(own(), groups=[0, 2**32 - 2]), True),
}


@contextlib.contextmanager
def finalizers_reporting_to(hook):
    """Python only reports what a finalizer raises: report it to `hook`.

    A fixture could not do that, because pytest before 8.4 sets a hook of its
    own when it calls the test.
    """
    before, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def raised_at_each_place(case, raising_at):
    """Raise at one place after the other: how many there were."""
    place, seen = 0, []

    def hook(unraisable):  # keeps nothing else, or a message would live on
        seen.append(unraisable.exc_type)

    with finalizers_reporting_to(hook):
        while True:
            with prepared(case) as (table, function), raising_at(place, table.look) as where:
                try:
                    function()
                except Interrupted:
                    seen.append(Interrupted)
            if not where:
                return place
            assert seen == [Interrupted], where
            seen.clear()
            place += 1


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_raised_at_each_bytecode(case):
    """Whatever bytecode a handler raises at, what is open is the caller's.

    Options are all old or all new, and an answer is right.
    """
    assert raised_at_each_place(case, raising_at_bytecode) > 0


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_raised_at_each_call(case):
    """Wherever Python runs a handler, what is open is the caller's."""
    assert raised_at_each_place(case, raising_at_call) > 0


@pytest.mark.parametrize("name", [name for name in CASES if "receive" in name or name in ("close", "with")])
def test_nothing_swallows_it(name, monkeypatch):
    """What a handler raises reaches the caller, wherever it is raised.

    Python drops what is raised in a finalizer.
    """
    swallowed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: swallowed.append(unraisable.exc_type))
    place, where = 0, [""]
    while where:
        with (
            prepared(CASES[name]) as (table, function),
            raising_at_call(place, table.look) as where,
            contextlib.suppress(Interrupted),
        ):
            function()
        place += 1
    assert swallowed == []


def test_second_close_is_found():
    """The table finds a descriptor that is closed twice."""

    def case(receiver, sender):
        message = received(receiver, sender)
        fds = message.fds
        yield lambda: [message.close(), *map(os.close, fds)]

    with pytest.raises(AssertionError), prepared(case) as (table, function), raising_at_call(10**6, table.look):
        function()


def test_open_descriptor_is_found():
    """The table finds a descriptor that stays open."""

    def case(receiver, sender):
        left.extend((yield received(receiver, sender).detach_fds))

    left = []
    with pytest.raises(AssertionError, match="left open"), prepared(case) as (_, function):
        function()
    assert len(left) == 2
    for fd in left:
        os.close(fd)


STORMS = ("receive some, and strays", "close", "detach_fds", *map(str, OPENING))


@pytest.mark.parametrize("name", STORMS)
def test_real_timers(name, effort):
    """Whenever a real signal comes, what is open is the caller's."""
    with finalizers_reporting_to(lambda _: None):
        assert call(partial(storm, CASES[name], 300 * effort)) > 0


def public_functions():
    """Every function and method that a user may call, by its code."""
    for module in (peercred, messages):
        for thing in map(vars(module).get, module.__all__):
            if inspect.isfunction(thing):
                yield thing.__code__
    for cls in (peercred.AllowList, messages.Message):
        for name, thing in vars(cls).items():
            if inspect.isfunction(thing) and (not name.startswith("_") or name in ("__enter__", "__exit__")):
                yield thing.__code__


def test_every_public_function_is_among_them():
    """No function that asks the kernel or owns descriptors is left out."""
    left = set(public_functions())

    def profile(frame, event, _):
        if event == "call" and ours(frame):
            left.discard(frame.f_code)

    for case in CASES.values():
        with prepared(case) as (_, function):
            sys.setprofile(profile)
            try:
                function()
            finally:
                sys.setprofile(None)
    assert left == set()
