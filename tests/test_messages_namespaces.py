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
    """Root's zeroes are translated: the kernel says (0, 1000, 1000) to whom root is 1000, and that is nobody either."""
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
    """Pid None beside valid ids, root's too: also of a message without data, if it is one."""
    receiver, sender = ends
    messages.enable(receiver)
    sender.send(b"x")
    call(lambda: become(uid=1001, gid=2001) or sender.send(b"y"))
    datagram = receiver.type != socket.SOCK_STREAM
    if datagram:
        sender.send(b"")

    def inside():
        return [messages.receive(receiver, 100).cred for _ in range(2 + datagram)]

    assert in_pid_namespace(inside) == [Cred(None, 0, 0), Cred(None, 1001, 2001), Cred(None, 0, 0)][: 2 + datagram]


@needs_namespaces
def test_one_overflow_id_is_a_sender(datagrams):
    """Outside of the PID namespace, one id that reads 65534 beside another is an identity; two are not."""
    receiver, sender = datagrams
    uid, gid = overflow_ids()
    for ids in ((uid, 2001), (1001, gid), (uid, gid)):
        call(lambda ids=ids: become(uid=ids[0], gid=ids[1]) or sender.send(b"x"))

    def inside():
        return [messages.receive(receiver, 100).cred for _ in range(3)]

    assert in_pid_namespace(inside) == [Cred(None, uid, 2001), Cred(None, 1001, gid), None]


@needs_namespaces
def test_overflow_ids_are_the_systems(datagrams, tmp_path):
    """They are those that the system says now, not 65534: root may change them. (Here, only this namespace's files.)"""
    receiver, sender = datagrams
    for _ in range(2):
        call(lambda: become(uid=60001, gid=60002) or sender.send(b"x"))

    def inside():
        before = messages.receive(receiver, 100).cred
        for kind, number in (("uid", "60001\n"), ("gid", "60002\n")):
            (tmp_path / kind).write_text(number)
            bind_mount(tmp_path / kind, Path(f"/proc/sys/kernel/overflow{kind}"))
        return before, messages.receive(receiver, 100).cred

    assert in_pid_namespace(inside) == (Cred(None, 60001, 60002), None)


@needs_namespaces
def test_sender_without_a_mapping(datagrams):
    """A stranger to the user namespace alone has a pid, and overflow ids: the reader is told both."""
    receiver, sender = datagrams
    with Child(lambda: become(uid=1001, gid=2001) or sender.send(b"x")) as child:
        child.result()
        assert in_user_namespace("0 0 1", lambda: messages.receive(receiver, 100).cred) == Cred(
            child.pid, *overflow_ids()
        )
