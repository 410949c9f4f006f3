"""No call leaves a descriptor, memory or a reference behind.

Each call is made many times, whether it succeeds or fails.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import os
import pickle
import socket
import struct
import sys
import warnings

import pytest
from peers import (
    LIBC,
    Child,
    become,
    connect,
    kernel_has_pidfd,
    needs_cpython,
    open_descriptors,
    overflow_ids,
    own,
)

import peercred
from peercred import AllowList, Cred, messages

CALLS = 500  # of each function with each argument; the effort multiplies it
PIDFD = kernel_has_pidfd()


class Malloc(ctypes.Structure):
    """struct mallinfo2."""

    NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in NAMES)


def memory():
    """How many bytes libc has allocated.

    It is 0 where libc does not tell: in musl, and in glibc before 2.33.
    """
    if not hasattr(LIBC, "mallinfo2"):
        return 0
    LIBC.mallinfo2.restype = Malloc
    info = LIBC.mallinfo2()
    return info.uordblks + info.hblkhd


needs_mallinfo = pytest.mark.skipif(not hasattr(LIBC, "mallinfo2"), reason="needs mallinfo2, of glibc 2.33")


def footprint():
    """Numbers of open descriptors, of Python's blocks and references, of bytes.

    Only a debug build of Python counts its references.
    """
    return (
        len(open_descriptors()),
        sys.getallocatedblocks(),
        getattr(sys, "gettotalrefcount", int)(),
        memory(),
    )


def assert_no_leak(function, arguments, calls):
    """Call the function many times, and check that nothing is left.

    It may raise an exception each time.
    """

    def run(number):
        for _ in range(number):
            with contextlib.suppress(OSError, TypeError, ValueError):
                function(*arguments)

    # Coverage's tracer adds references to None.
    counted = [argument for argument in arguments if argument is not None]
    gc.freeze()  # gc.collect() is faster if it ignores what is there already
    try:
        run(calls // 4)  # fill caches and free lists
        gc.collect()
        counts = list(map(sys.getrefcount, counted))
        before = footprint()
        run(calls)
        gc.collect()
        after = footprint()
        assert list(map(sys.getrefcount, counted)) == counts
    finally:
        gc.unfreeze()
    descriptors, blocks, references, allocated = (new - old for new, old in zip(after, before, strict=True))
    assert descriptors == 0
    # Python itself takes some, but not one for each call.
    assert blocks < calls / 2
    assert references < calls / 2
    assert allocated < calls * 8  # malloc(1) takes 24 bytes


class WithFileno:
    def __init__(self, answer):
        self.answer = answer

    def fileno(self):
        return self.answer


class WithExtraInfo:
    def __init__(self, answer):
        self.answer = answer

    def get_extra_info(self, name, default=None):
        return self.answer


class Closed:
    """A wrapper that has let go of its socket."""

    def fileno(self):
        return self.gone.fileno()


def two_ends(stack, kind=socket.SOCK_STREAM):
    return [stack.enter_context(sock) for sock in socket.socketpair(socket.AF_UNIX, kind)]


def connection(stack):
    return two_ends(stack)[0]


def listener(stack):
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind("")
    sock.listen()
    return sock


def peer_in_many_groups(stack):
    """A peer with more groups than the library first makes room for.

    Only root can have a peer with other groups than its own.
    """
    server = listener(stack)

    def client():
        if os.geteuid() == 0:
            become(uid=1001, gid=2001, groups=tuple(range(100_000, 101_000)))
        return connect(server.getsockname()).detach()

    with Child(client) as child:
        child.result()
        return stack.enter_context(server.accept()[0])


def closed(stack):
    sock = connection(stack)
    sock.close()
    return sock


def tcp(stack):
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return stack.enter_context(socket.create_connection(server.getsockname()))


CONNECTIONS = {
    "a connection": connection,
    "a descriptor": lambda stack: connection(stack).fileno(),
    "a peer in many groups": peer_in_many_groups,
    "an object with fileno()": lambda stack: WithFileno(connection(stack).fileno()),
    "a transport": lambda stack: WithExtraInfo(connection(stack)),
    "a closed socket": closed,
    "a closed wrapper": lambda stack: Closed(),
    "a closed transport": lambda stack: WithExtraInfo(None),
    "a listening socket": listener,
    "an unconnected socket": lambda stack: stack.enter_context(socket.socket(socket.AF_UNIX)),
    "a datagram socket": lambda stack: stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
    "a TCP socket": tcp,
    "a file": lambda stack: stack.enter_context(open(os.devnull)),  # noqa: SIM115
    "-1": lambda stack: -1,
    "too large a number": lambda stack: 2**40,
    "a str": lambda stack: "socket",
    "None": lambda stack: None,
    "True": lambda stack: True,
    "a fileno() that is no int": lambda stack: WithFileno("5"),
}

QUESTIONS = {
    "read": peercred.read,
    "read_groups": peercred.read_groups,
    "read_label": peercred.read_label,
    "open_pidfd": lambda conn: os.close(peercred.open_pidfd(conn)),
    "require(users)": AllowList(uids=range(2**31)).require,
    "require(groups)": AllowList(gids=range(2**31)).require,
    "require(nobody)": AllowList().require,
}


@needs_cpython("for its reference counts")
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("conn", CONNECTIONS)
def test_questions(question, conn, effort):
    """The functions that ask about a connection leave nothing behind."""
    with contextlib.ExitStack() as stack:
        assert_no_leak(QUESTIONS[question], [CONNECTIONS[conn](stack)], CALLS * effort)


VALUES = {
    "Cred": (Cred, 1, 1000, 1000),
    "Cred without a pid": (Cred, None, 1000, 1000),
    "Cred with a str": (Cred, 1, "root", 1000),
    "Cred with uid -1": (Cred, 1, 2**32 - 1, 1000),
    "Cred, copied": (copy.deepcopy, Cred(1, 70_000, 70_000)),
    "Cred, pickled": (lambda cred: pickle.loads(pickle.dumps(cred)), Cred(1, 70_000, 70_000)),
    "Cred, in a set": (lambda cred: {cred, Cred(2, 3, 4)}, Cred(1, 70_000, 70_000)),
    "Cred, shown": (repr, Cred(1, 70_000, 70_000)),
    "AllowList": (AllowList, {0, 70_000}, [70_001]),
    "AllowList of a range": (AllowList, range(70_000), range(70_000)),
    "AllowList of names": (AllowList, ["root"], ["root"]),
    "AllowList of an unknown name": (AllowList, ["root", "no such user"], []),
    "AllowList of an int": (AllowList, 70_000, None),
    "AllowList of wrong ids": (AllowList, [70_000, 2**32], [-1]),
    "AllowList of the overflow id": (AllowList, overflow_ids()[:1]),
    "AllowList, copied": (copy.copy, AllowList([70_000], [70_001])),
    "AllowList, pickled": (lambda allowed: pickle.loads(pickle.dumps(allowed)), AllowList([70_000], [70_001])),
    "AllowList, shown and compared": (lambda one: (repr(one), one == AllowList()), AllowList([70_000], [70_001])),
    "permits what it lacks": (AllowList({1}, {2}).permits, Cred(1, 70_000, 70_000), (1, 70_000, 70_001)),
    "permits what it has": (AllowList({1}, {70_000}).permits, Cred(1, 70_000, 70_000), (1, 70_000, 70_001)),
    "permits None": (AllowList().permits, None),
    "permits no Cred": (AllowList().permits, "root"),
    "permits no groups": (AllowList().permits, Cred(1, 70_000, 70_000), [70_000, "root"]),
}


@needs_cpython("for its reference counts")
@pytest.mark.parametrize("value", VALUES)
def test_values(value, effort):
    """Making, copying and using Cred and AllowList leaves nothing behind."""
    function, *arguments = VALUES[value]
    assert_no_leak(function, arguments, CALLS * effort)


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


def taken_over(message):
    for fd in (message.detach_pidfd(), *message.detach_fds()):
        if fd is not None:
            os.close(fd)


def not_copied(message):
    with message:
        pickle.dumps(message)


def time_stamped(sock):
    """A time stamp takes room from the credentials."""
    messages.enable(sock)
    sock.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP


def with_everything(sock):
    messages.enable(sock, pidfd=PIDFD, label=True)


def with_a_pidfd(sock):
    messages.enable(sock, pidfd=PIDFD)


def dropped(stack):
    function, receiver = receives(2, max_fds=2, prepare=with_everything, end=id)(stack)

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
    "receive a pidfd": receives(prepare=with_a_pidfd),
    "receive a pidfd and descriptors": receives(2, max_fds=2, prepare=with_everything),
    "receive descriptors with max_fds=0": receives(3, prepare=with_everything),
    "receive cut-off credentials": receives(2, max_fds=2, prepare=time_stamped),
    "receive and take over": receives(2, max_fds=2, prepare=with_everything, end=taken_over),
    "receive and drop": dropped,
    "receive and fail to pickle": receives(2, max_fds=2, prepare=with_everything, end=not_copied),
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


@needs_cpython("for its reference counts")
@pytest.mark.parametrize(
    "leak", ["a descriptor", "a block", "a reference", pytest.param("memory from libc", marks=needs_mallinfo)]
)
def test_leak_is_found(leak):
    """assert_no_leak() finds a leak of each kind."""
    kept, opened = [], []
    leaky = {
        "a descriptor": lambda argument: opened.append(os.dup(0)),
        "a block": lambda argument: kept.append(object()),
        "a reference": kept.append,
        "memory from libc": lambda argument: LIBC.strdup(bytes(1).rjust(10_000, b"x")),
    }[leak]
    with pytest.raises(AssertionError):
        assert_no_leak(leaky, [object()], CALLS)
    for fd in opened:
        os.close(fd)


def test_calls_can_succeed(datagrams):
    """This kernel names peers and senders, so not every call above fails."""
    receiver, sender = datagrams
    assert receiver.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
    messages.send(sender, b"x", cred=own())
    assert messages.receive(receiver, 1).cred == peercred.read(receiver) == own()
