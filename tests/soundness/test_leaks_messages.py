"""Messages leave no descriptor, memory or reference behind.

Each case is repeated many times, whether it succeeds or fails.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
import warnings

import pytest
from leaks import CALLS, assert_no_leak, closed, connection, tcp, two_ends
from peers import SO_PEERPIDFD, SO_TIMESTAMP, kernel_has, needs_cpython, own

from peercred import Cred, messages

PIDFD = kernel_has(SO_PEERPIDFD)


class Plain(socket.socket):
    """A subclass that adds nothing."""


class Overriding(socket.socket):
    """A subclass with a recvmsg() of its own, which enable() refuses."""

    def recvmsg(self, *arguments):
        raise AssertionError("it must not be called")


def receives(number=0, *, max_fds=0, end=None, prepare=messages.enable, bufsize=100, flags=0):
    """A case that sends a message with descriptors, and receives it."""

    def make(stack):
        receiver, sender = two_ends(stack, socket.SOCK_DGRAM)
        prepare(receiver)
        payload = struct.pack(f"{number}i", *[0] * number)
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, payload)] if number else []

        def function(receiver):
            sender.sendmsg([b"data"], control)
            try:
                message = messages.receive(receiver, bufsize, flags, max_fds=max_fds)
            finally:
                if flags:
                    receiver.recv(100)
            end(message) if end else message.close()

        return function, receiver

    return make


def take_over(message):
    for fd in (message.detach_pidfd(), *message.detach_fds()):
        if fd is not None:
            os.close(fd)


def fail_to_pickle(message):
    with message:
        pickle.dumps(message)


def enable_time_stamps(sock):
    """A time stamp takes room from the credentials."""
    messages.enable(sock)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)


def enable_everything(sock):
    messages.enable(sock, pidfd=PIDFD, label=True)


def enable_pidfd(sock):
    messages.enable(sock, pidfd=PIDFD)


def receive_and_drop(stack):
    """A case that receives a message, and lets it go without closing it."""
    function, receiver = receives(2, max_fds=2, prepare=enable_everything, end=id)(stack)

    def quietly(receiver):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            function(receiver)

    return quietly, receiver


def sends(data, *, kind=socket.SOCK_DGRAM, **options):
    """A case that sends a message, and takes it off the queue."""

    def make(stack):
        receiver, sender = two_ends(stack, kind)
        sender.setblocking(False)

        def function(sender, data):
            messages.send(sender, data, **options)
            receiver.recv(100)

        return function, sender, data

    return make


def calling(function, make):
    """A case that calls a function with what `make` makes."""
    return lambda stack: (function, make(stack))


def peek(sock):
    return messages.receive(sock, 100, socket.MSG_DONTWAIT)


def say(sock):
    return messages.send(sock, b"x", cred=Cred(None, 0, 0), fds=[0], flags=socket.MSG_DONTWAIT)


def at_the_end(stack):
    receiver, sender = two_ends(stack)
    messages.enable(receiver)
    sender.close()
    return receiver


REFUSED = {
    "a closed socket": closed,
    "a TCP socket": tcp,
    "a descriptor": lambda stack: connection(stack).fileno(),
    "None": lambda stack: None,
    "an overriding subclass": lambda stack: stack.enter_context(Overriding(socket.AF_UNIX)),
}
EXCHANGES = {
    "receive": receives(),
    "receive without options": receives(prepare=lambda sock: None),
    "receive a part": receives(bufsize=2),
    "receive and peek": receives(2, max_fds=1, flags=socket.MSG_PEEK),
    "receive descriptors": receives(3, max_fds=3),
    "receive too many descriptors": receives(3, max_fds=1),
    "receive a flood of descriptors": receives(253),
    "receive a pidfd": receives(prepare=enable_pidfd),
    "receive a pidfd and descriptors": receives(2, max_fds=2, prepare=enable_everything),
    "receive descriptors with max_fds=0": receives(3, prepare=enable_everything),
    "receive cut-off credentials": receives(2, max_fds=2, prepare=enable_time_stamps),
    "receive and take over": receives(2, max_fds=2, prepare=enable_everything, end=take_over),
    "receive and drop": receive_and_drop,
    "receive and fail to pickle": receives(2, max_fds=2, prepare=enable_everything, end=fail_to_pickle),
    "receive and pickle": receives(end=lambda message: pickle.loads(pickle.dumps(message))),
    "receive with a wrong max_fds": receives(max_fds=254, flags=socket.MSG_PEEK),
    "receive with a wrong bufsize": receives(bufsize=-1, flags=socket.MSG_PEEK),
    "receive nothing": calling(peek, connection),
    "receive the end of a stream": calling(peek, at_the_end),
    "send": sends(b"data"),
    "send by a stream": sends(b"data", kind=socket.SOCK_STREAM),
    "send buffers": sends([b"da", bytearray(b"ta")]),
    "send with credentials": sends(b"data", cred=own()),
    "send with descriptors": sends(b"data", fds=[0, 1, 2]),
    "send both": sends(b"data", cred=own(), fds=[0]),
    "send forged credentials": sends(b"data", cred=Cred(2**31 - 1, 1, 1)),
    "send what is not open": sends(b"data", fds=[0, 2**31 - 1]),
    "send what is no descriptor": sends(b"data", fds=[0, "1"]),
    "send too many descriptors": sends(b"data", fds=[0] * 254),
    "send text": sends("data"),
    "send no data": sends(b"", kind=socket.SOCK_STREAM, cred=own()),
    "send too much": sends(bytes(2**20)),
    "send to nobody": sends(b"data", address="/nowhere/at all"),
    "enable": lambda stack: (messages.enable, connection(stack)),
    "enable a subclass": lambda stack: (messages.enable, stack.enter_context(Plain(socket.AF_UNIX))),
    "enable and disable": lambda stack: (
        lambda sock: [messages.enable(sock, creds=on, label=on, fds=on) for on in (True, False)],
        connection(stack),
    ),
    "enable a label alone": lambda stack: (
        lambda sock: messages.enable(sock, creds=False, label=True),
        connection(stack),
    ),
    **{
        f"{name} {state}": calling(function, make)
        for name, function in {"enable": messages.enable, "receive": peek, "send": say}.items()
        for state, make in REFUSED.items()
    },
}


@needs_cpython("for its reference counts")
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_exchanges(exchange, effort):
    """Sending and receiving messages leaves nothing behind."""
    with contextlib.ExitStack() as stack:
        function, *arguments = EXCHANGES[exchange](stack)
        assert_no_leak(function, arguments, CALLS * effort)
