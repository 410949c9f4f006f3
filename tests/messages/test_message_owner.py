"""The descriptors of a message have one owner at any moment.

Neither copies nor threads make two of one.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import gc
import itertools
import os
import pickle
import re
import socket
import sys
import warnings

import pytest
from interrupting import Interrupted, ours, raising_at_call
from peers import Child, attach, is_open, needs_cpython, needs_pidfd, open_descriptors, outcome

import peercred
from peercred import messages


@pytest.fixture
def message(pair):
    """A message with two descriptors."""
    receiver, sender = pair
    messages.enable(receiver)
    attach(sender, b"x", 2)
    with messages.receive(receiver, 100, max_fds=2) as message:
        yield message


def test_close(message):
    """close() closes the descriptors once, and forgets their numbers.

    They may be other descriptors' soon.
    """
    fds = message.fds
    message.close()
    assert message.fds == ()
    others = [os.dup(0), os.dup(0)]
    assert tuple(others) == fds
    message.close()
    assert all(map(is_open, others))
    for fd in others:
        os.close(fd)


def test_with(datagrams):
    """`with` closes the descriptors, after an error too."""
    receiver, sender = datagrams
    socket.send_fds(sender, [b"x"], [0])
    with pytest.raises(ZeroDivisionError), messages.receive(receiver, 100, max_fds=1) as message:
        [fd] = message.fds
        assert is_open(fd)
        raise ZeroDivisionError
    assert not is_open(fd)


def test_detach_fds(message):
    """Detached descriptors are the caller's, and close() leaves them alone."""
    fds = message.detach_fds()
    assert len(fds) == 2
    assert (message.fds, message.detach_fds()) == ((), ())
    message.close()
    assert all(map(is_open, fds))
    for fd in fds:
        os.close(fd)


def drop(kept):
    kept.clear()
    gc.collect()  # PyPy does not count references


def test_dropped(datagrams):
    """A dropped message closes its descriptors, with a ResourceWarning."""
    receiver, sender = datagrams
    socket.send_fds(sender, [b"x"], [0, 0])
    kept = [messages.receive(receiver, 100, max_fds=2)]
    fds = kept[0].fds
    warns = pytest.warns(ResourceWarning, match="peercred closes 2 descriptors that nobody has closed")
    with warns if sys.implementation.name == "cpython" else contextlib.nullcontext():  # PyPy drops it late
        drop(kept)
    assert not any(map(is_open, fds))


@needs_cpython("which warns of it")
def test_dropped_where_warnings_are_errors(datagrams, monkeypatch):
    """Where the warning is an error, Python reports it, and all is closed."""
    receiver, sender = datagrams
    socket.send_fds(sender, [b"x"], [0, 0])
    kept, seen = [messages.receive(receiver, 100, max_fds=2)], []
    fds = kept[0].fds
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drop(kept)
    assert seen == [ResourceWarning]
    assert not any(map(is_open, fds))


@needs_cpython("where objects are dropped at once")
def test_warning_says_where(pair):
    """The ResourceWarning names the line that drops the message."""
    receiver, sender = pair
    socket.send_fds(sender, [b"x"], [0])
    message = messages.receive(receiver, 10, max_fds=1)
    [fd] = message.fds
    with pytest.warns(ResourceWarning, match="that nobody has closed") as caught:
        del message
    [warning] = caught
    assert warning.filename == __file__
    assert not is_open(fd)


def test_no_copies(message):
    """A message with descriptors is neither copied nor pickled.

    What replace() makes of it has none.
    """
    for function in (copy.copy, copy.deepcopy, pickle.dumps, lambda message: pickle.dumps([message])):
        with pytest.raises(TypeError, match="cannot be copied or pickled: close or detach them first"):
            function(message)
    other = dataclasses.replace(message, data=b"y")
    assert (other.data, other.cred, other.fds, other.pidfd) == (b"y", message.cred, (), None)
    other.close()
    assert all(map(is_open, message.fds))


@needs_pidfd
def test_no_copies_with_a_pidfd_alone(pair):
    """A message with a pidfd alone cannot be copied, and replace() drops it."""
    receiver, sender = pair
    messages.enable(receiver, pidfd=True)
    sender.send(b"x")
    with messages.receive(receiver, 10) as message:
        for function in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="close or detach them first"):
                function(message)
        assert dataclasses.replace(message, data=b"y").pidfd is None
        assert message.pidfd is not None


COPIES = {
    "asdict": dataclasses.asdict,
    "astuple": dataclasses.astuple,
    "replace": lambda message: dataclasses.replace(message, data=b"y"),
    "a dict": lambda message: dict(vars(message)),
    "a copied dict": lambda message: copy.copy(vars(message)),
    "a deeply copied dict": lambda message: copy.deepcopy(vars(message)),
    "a pickled dict": lambda message: pickle.loads(pickle.dumps(vars(message))),
    "an object with its dict": lambda message: vars(object.__new__(messages.Message)).update(vars(message)),
    "an update": lambda message: object.__new__(messages.Message).__dict__.update(vars(message)),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_own_nothing(message, name):
    """What is made of a message, and dropped, closes none of its descriptors.

    Nor does it close those that have their numbers later.
    """
    fds = message.fds
    try:
        made = COPIES[name](message)
    except TypeError as error:
        made = None
        assert re.search("pickle|_CDataBase", str(error))  # PyPy names the class
    del made
    gc.collect()
    assert all(map(is_open, fds))
    message.close()
    others = [os.dup(0), os.dup(0)]
    assert tuple(others) == fds
    message.close()
    gc.collect()
    assert all(map(is_open, others))
    for fd in others:
        os.close(fd)


def test_forked_process(message):
    """A process that is forked while a message is open has copies.

    It closes its own, and the parent's stay open.
    """
    if (child := os.fork()) == 0:
        message.close()
        os._exit(any(map(is_open, message.detach_fds())))
    assert os.waitpid(child, 0)[1] == 0
    assert all(map(is_open, message.fds))


@pytest.mark.parametrize("rivals", ["close", "detach", "both"])
def test_rivals(pair, crowd, effort, rivals):
    """Of threads that close and detach at once, one gets each descriptor.

    What a thread has detached stays open, whatever the others do.
    """
    receiver, sender = pair
    for _ in range(40 * effort):
        attach(sender, b"x", 20)
        message, detached, others = messages.receive(receiver, 1, max_fds=20), [], []
        fds = message.fds

        def detach(done, message=message, detached=detached):
            detached.extend(message.detach_fds())

        def close(done, message=message, others=others):
            message.close()
            others.append(os.dup(1))  # gets the number of one that was closed

        crowd({"close": [close] * 8, "detach": [detach] * 8, "both": [detach, close] * 4}[rivals])
        assert message.fds == ()
        assert set(detached) <= set(fds)
        for fd in detached + others:
            os.close(fd)  # raises if somebody else has closed it
        assert not any(map(is_open, fds))


@needs_pidfd
def test_rivals_for_a_pidfd(pair, crowd, effort):
    """Of threads that close and detach at once, at most one gets the pidfd."""
    receiver, sender = pair
    messages.enable(receiver, pidfd=True)
    for _ in range(100 * effort):
        sender.send(b"x")
        message, detached = messages.receive(receiver, 1), []

        def detach(done, message=message, detached=detached):
            detached.append(message.detach_pidfd())

        crowd([detach, lambda done, message=message: message.close()] * 4)
        assert message.pidfd is None
        for fd in filter(None, detached):
            os.close(fd)
        assert len(detached) - detached.count(None) <= 1


@needs_cpython("where a cycle is found at once")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_reference_cycle(pair):
    """A message in a reference cycle closes its descriptors.

    The cycle may still use the message while Python takes it apart.
    """
    receiver, sender = pair

    class Late:
        def __del__(self):
            seen.append(self.message.fds)
            self.message.close()

    for _ in range(20):
        seen = []
        attach(sender, b"x", 2)
        late = Late()
        late.message = messages.receive(receiver, 1, max_fds=2)
        late.message.__dict__["late"] = late
        fds = late.message.fds
        del late
        gc.collect()
        assert seen in ([fds], [()])
        assert not any(map(is_open, fds))


@needs_cpython("it interrupts by sys.setprofile()")
@pytest.mark.parametrize(
    ("function", "close"),
    [
        (lambda sock: messages.receive(sock, 1, max_fds=10), messages.Message.close),
        pytest.param(peercred.open_pidfd, os.close, marks=needs_pidfd),
        pytest.param(peercred.open_proc, os.close, marks=needs_pidfd),
    ],
    ids=["receive", "open_pidfd", "open_proc"],
)
def test_kept_exceptions(pair, function, close):
    """An exception that is kept, with all its frames, keeps nothing open."""
    receiver, sender = pair
    before, kept = open_descriptors(), []
    for place in itertools.count():
        attach(sender, b"x", 10)
        with raising_at_call(place, lambda: None) as where:
            try:
                opened = function(receiver)
            except Interrupted as error:
                kept.append(error)
        if not where:
            break
        assert open_descriptors() == before, where
        with contextlib.suppress(BlockingIOError):
            receiver.recv(1, socket.MSG_DONTWAIT)  # if it was not received
    close(opened)
    assert len(kept) > 5


@needs_pidfd
@needs_cpython("it uses sys.setprofile() to come between two calls")
def test_closed_while_open_proc_looks(datagrams):
    """open_proc() never opens what has got the number of a closed pidfd.

    Before each of its calls in turn, the message is closed, as by another
    thread, and the number goes to a stranger's pidfd.
    """
    receiver, sender = datagrams
    messages.enable(receiver, pidfd=True)
    with Child(lambda: None) as stranger, open(os.pidfd_open(stranger.pid)) as other:
        answers = []
        for moment in itertools.count():
            sender.send(b"x")
            message = messages.receive(receiver, 10)
            pidfd, calls = message.pidfd, 0

            def between(frame, event, _, message=message, pidfd=pidfd, moment=moment):
                nonlocal calls
                if ours(frame) and event in ("call", "c_call"):
                    if calls == moment:
                        message.close()
                        os.dup2(other.fileno(), pidfd)
                    calls += 1

            previous = sys.getprofile()
            sys.setprofile(between)
            try:
                answer = outcome(message.open_proc)
            finally:
                sys.setprofile(previous)
            if calls <= moment:
                message.close()
                os.close(answer)
                break
            os.close(pidfd)
            if isinstance(answer, int):
                with open(os.open("stat", os.O_RDONLY, dir_fd=answer)) as stat:
                    assert stat.read().startswith(f"{os.getpid()} ")
                os.close(answer)
            else:
                answers.append(answer)
    assert set(answers) == {(OSError, errno.EBADF)}
