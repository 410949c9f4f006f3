"""receive(): senders and readers in namespaces of their own."""

from __future__ import annotations

import array
import socket
from pathlib import Path

import pytest
from peers import Child, become, bind_mount, call, in_pid_namespace, in_user_namespace, needs_namespaces, overflow_ids

from peercred import Cred, messages


@needs_namespaces
@pytest.mark.parametrize("mapping", ["1000 0 1", "0 1000 1"])
def test_end_of_a_stream_in_a_user_namespace(pair, mapping):
    """The end of a stream is nobody's in a user namespace either.

    The kernel says (0, 1000, 1000) to whom root is 1000.
    """
    receiver, sender = pair
    messages.enable(receiver)
    sender.close()

    def inside():
        return (
            array.array("I", receiver.recvmsg(100, 100)[1][0][2]).tolist(),
            messages.receive(receiver, 100).cred,
        )

    expected = [0, 1000, 1000] if mapping == "1000 0 1" else [0, *overflow_ids()]
    assert in_user_namespace(mapping, inside) == (expected, None)


@needs_namespaces
def test_sender_in_another_pid_namespace(ends):
    """A sender in another PID namespace has a pid of None and valid ids.

    That is so for root and for an empty message, too. On a stream it is nobody,
    because the kernel says the same of what root has not sent.
    """
    receiver, sender = ends
    messages.enable(receiver)
    sender.send(b"x")
    call(lambda: become(uid=1001, gid=2001) or sender.send(b"y"))
    datagram = receiver.type != socket.SOCK_STREAM
    if datagram:
        sender.send(b"")

    def inside():
        return [messages.receive(receiver, 100).cred for _ in range(2 + datagram)]

    creds = [Cred(None, 0, 0), Cred(None, 1001, 2001), Cred(None, 0, 0)] if datagram else [None, None]
    assert in_pid_namespace(inside) == creds


@needs_namespaces
def test_one_overflow_id_is_a_sender(datagrams):
    """One id of 65534 beside another one is a sender; two of them are nobody.

    Both are seen from another PID namespace.
    """
    receiver, sender = datagrams
    uid, gid = overflow_ids()
    for ids in ((uid, 2001), (1001, gid), (uid, gid)):
        call(lambda ids=ids: become(uid=ids[0], gid=ids[1]) or sender.send(b"x"))

    def inside():
        return [messages.receive(receiver, 100).cred for _ in range(3)]

    assert in_pid_namespace(inside) == [Cred(None, uid, 2001), Cred(None, 1001, gid), None]


@needs_namespaces
def test_overflow_ids_are_the_kernels(datagrams, tmp_path):
    """The overflow ids are the kernel's, whatever /proc says."""
    receiver, sender = datagrams
    for ids in ((60001, 60002), overflow_ids()):
        call(lambda ids=ids: become(uid=ids[0], gid=ids[1]) or sender.send(b"x"))

    def inside():
        for kind, number in (("uid", "60001\n"), ("gid", "60002\n")):
            (tmp_path / kind).write_text(number)
            bind_mount(tmp_path / kind, Path(f"/proc/sys/kernel/overflow{kind}"))
        return [messages.receive(receiver, 100).cred for _ in range(2)]

    assert in_pid_namespace(inside) == [Cred(None, 60001, 60002), None]


@needs_namespaces
def test_sender_without_a_mapping(datagrams):
    """A sender without a mapping has its pid, and overflow ids."""
    receiver, sender = datagrams
    with Child(lambda: become(uid=1001, gid=2001) or sender.send(b"x")) as child:
        child.result()
        assert in_user_namespace("0 0 1", lambda: messages.receive(receiver, 100).cred) == Cred(
            child.pid, *overflow_ids()
        )
