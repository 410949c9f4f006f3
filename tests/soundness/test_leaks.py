"""No call leaves a descriptor, memory or a reference behind.

Each call is made many times, whether it succeeds or fails.
"""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import socket

import pytest
from leaks import CALLS, assert_no_leak, closed, connection, tcp
from peers import LIBC, Child, Holder, Transport, become, connect, needs_cpython, overflow_ids, own
from questions import QUESTIONS

import peercred
from peercred import AllowList, Cred, messages


class Closed:
    """A wrapper that has let go of its socket."""

    def fileno(self):
        return self.gone.fileno()


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


CONNECTIONS = {
    "a connection": connection,
    "a descriptor": lambda stack: connection(stack).fileno(),
    "a peer in many groups": peer_in_many_groups,
    "an object with fileno()": lambda stack: Holder(connection(stack).fileno()),
    "a transport": lambda stack: Transport(connection(stack)),
    "a closed socket": closed,
    "a closed wrapper": lambda stack: Closed(),
    "a closed transport": lambda stack: Transport(None),
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
    "a fileno() that is no int": lambda stack: Holder("5"),
}

CALLED = {
    **{question.name: question.ask for question in QUESTIONS},
    "require(users)": AllowList(uids=range(2**31)).require,
    "require(groups)": AllowList(gids=range(2**31)).require,
    "require(nobody)": AllowList().require,
}


@needs_cpython("for its reference counts")
@pytest.mark.parametrize("question", CALLED)
@pytest.mark.parametrize("conn", CONNECTIONS)
def test_questions(question, conn, effort):
    """The functions that ask about a connection leave nothing behind."""
    with contextlib.ExitStack() as stack:
        assert_no_leak(CALLED[question], [CONNECTIONS[conn](stack)], CALLS * effort)


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


needs_mallinfo = pytest.mark.skipif(not hasattr(LIBC, "mallinfo2"), reason="needs mallinfo2, of glibc 2.33")


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
