"""A Message is a value: immutable, comparable and hashable.

What it owns does not count.
"""

from __future__ import annotations

import copy
import dataclasses
import errno
import socket

import pytest
from peers import COPIES, needs_pidfd, own

from peercred import Cred, messages


def test_is_a_value(datagrams):
    """A message is immutable, comparable and hashable.

    Without descriptors, it can be copied and pickled.
    """
    receiver, sender = datagrams
    sender.send(b"x")
    message = messages.receive(receiver, 100)
    for make in COPIES:
        assert make(message) == message
        assert hash(make(message)) == hash(message)
        assert repr(make(message)) == repr(message)
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


def test_descriptors_do_not_count(pair):
    """Messages with the same content are equal, whatever they own."""
    receiver, sender = pair
    messages.enable(receiver)
    received = []
    for number in (0, 1, 2):
        socket.send_fds(sender, [b"x"], [0] * number)
        received.append(messages.receive(receiver, 10, max_fds=2))
    for message in received:
        with message:
            assert message == received[0]
            assert hash(message) == hash(received[0])
            assert repr(message) == repr(received[0])


@needs_pidfd
def test_pidfd_does_not_count(pair):
    """Messages with the same content are equal, with a pidfd or without."""
    receiver, sender = pair
    for _ in range(2):
        messages.send(sender, b"x", cred=own())
    messages.enable(receiver)
    without = messages.receive(receiver, 1)
    messages.enable(receiver, pidfd=True)
    with messages.receive(receiver, 1) as message:
        assert message.pidfd is not None
        assert (message, hash(message), repr(message)) == (without, hash(without), repr(without))


def test_why_there_is_no_pidfd_does_not_count():
    """The reason why there is no pidfd does not count either."""
    reason = OSError(errno.EMFILE, "full")
    message = messages.Message(b"x", pidfd_error=reason)
    assert message == messages.Message(b"x")
    assert hash(message) == hash(messages.Message(b"x"))
    assert repr(message) == repr(messages.Message(b"x"))
    assert copy.copy(message).pidfd_error is reason


@pytest.mark.parametrize("name", ["_pidfd", "_fds", "fds", "pidfd"])
def test_descriptors_cannot_be_given(name):
    """Only receive() makes a message that owns descriptors."""
    with pytest.raises(TypeError, match=name):
        messages.Message(b"x", **{name: None})
