"""AllowList and messages where /proc is missing, or no descriptor is free."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from peers import (
    become,
    call,
    fill_table,
    free_descriptors,
    in_pid_namespace,
    needs_namespaces,
    needs_root,
    overflow_ids,
)

from peercred import AllowList, Cred, messages


def without_proc(function, directory):
    """What the function returns where there is no /proc."""

    def inside():
        os.chroot(directory)
        os.chdir("/")
        return function()

    return call(inside)


@needs_root
def test_allow_list_without_proc(tmp_path):
    """A list is made, and knows the overflow ids."""
    uid, gid = overflow_ids()

    def make():
        allowed = AllowList(uids=range(2**32 - 1))
        with pytest.raises(ValueError, match=f"{uid} is the overflow user id"):
            AllowList(uids={uid})
        with pytest.raises(ValueError, match=f"{gid} is the overflow group id"):
            AllowList(gids={gid})
        return allowed.permits(Cred(1, 5, 5)), allowed.permits(Cred(1, uid, 5))

    assert without_proc(make, tmp_path) == (True, False)


@needs_namespaces
@pytest.mark.parametrize("place", ["without /proc", "with a full table"])
def test_sender_outside_of_the_namespace(datagrams, place, tmp_path):
    """No message is lost.

    If the overflow ids cannot be asked for, a sender without a visible pid is
    nobody.
    """
    receiver, sender = datagrams
    call(lambda: become(uid=1001, gid=2001) or sender.send(b"x"))
    expected = Cred(None, 1001, 2001) if place == "without /proc" else None

    def receive():
        if place == "without /proc":
            os.chroot(tmp_path)
        else:
            fill_table()
        message = messages.receive(receiver, 100)
        return message.data, message.cred

    assert in_pid_namespace(receive) == (b"x", expected)


@needs_root
def test_early_message_without_proc(tmp_path):
    """A message that was queued before enable() is nobody's."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with receiver, sender:
        sender.send(b"early")
        messages.enable(receiver)
        assert without_proc(lambda: messages.receive(receiver, 100).cred, tmp_path) is None


@pytest.mark.parametrize("number", [0, 1])
def test_list_with_a_full_table(number):
    """A list cannot be made without two free descriptors, which it says."""
    with free_descriptors(number):
        with pytest.raises(OSError, match="cannot ask the kernel for the overflow ids") as caught:
            AllowList()
        assert caught.value.errno == errno.EMFILE
    with free_descriptors(2):
        AllowList()


def test_early_message_with_a_full_table(datagrams):
    """A message of which nothing is known is nobody's, and is not lost."""
    receiver, sender = datagrams
    messages.enable(receiver, creds=False)
    sender.send(b"early")
    messages.enable(receiver)
    with free_descriptors(0):
        message = messages.receive(receiver, 100)
    assert (message.data, message.cred) == (b"early", None)
