"""A Message is a value, and the owner of its descriptors."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import os
import pickle
import socket
import sys
import warnings

import pytest
from peers import is_open, needs_cpython, own

from peercred import Cred, messages


@pytest.fixture
def message(datagrams):
    """A message with two descriptors."""
    receiver, sender = datagrams
    socket.send_fds(sender, [b"x"], [0, 0])
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


def test_copies_own_nothing(message):
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


def test_is_a_value(datagrams):
    """A message is immutable, comparable and hashable.

    Without descriptors, it can be copied and pickled.
    """
    receiver, sender = datagrams
    sender.send(b"x")
    message = messages.receive(receiver, 100)
    for same in (copy.copy(message), copy.deepcopy(message), pickle.loads(pickle.dumps(message))):
        assert same == message
        assert hash(same) == hash(message)
        assert repr(same) == repr(message)
    assert repr(message) == f"Message(data=b'x', cred={own()}, label=None, flags=0, address=None)"
    assert (message.pidfd, message.fds, message.pidfd_error) == (None, (), None)
    for name in ("cred", "fds", "pidfd", "other"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(message, name, None)


def test_made_by_hand():
    """A message can be made by hand, without descriptors, for tests."""
    message = messages.Message(data=b"x", cred=Cred(5, 6, 7))
    assert (message.pidfd, message.fds, message.label, message.flags, message.address) == (None, (), None, 0, None)
    assert (message.detach_pidfd(), message.detach_fds()) == (None, ())
    message.close()
    assert message == messages.Message(b"x", Cred(5, 6, 7)) != messages.Message(b"x", Cred(5, 6, 8))
