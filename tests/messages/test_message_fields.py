"""Which fields make two messages equal, and which a copy takes along."""

from __future__ import annotations

import copy
import dataclasses
import errno
import pickle
import socket

import pytest
from peers import is_open, needs_cpython, needs_pidfd, own

from peercred import messages


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


@needs_pidfd
def test_copies_have_no_pidfd(pair):
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


@pytest.mark.parametrize("name", ["_pidfd", "_fds", "fds", "pidfd"])
def test_descriptors_cannot_be_given(name):
    """Only receive() makes a message that owns descriptors."""
    with pytest.raises(TypeError, match=name):
        messages.Message(b"x", **{name: None})


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
