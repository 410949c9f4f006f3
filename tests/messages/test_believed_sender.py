"""Whom receive() believes a message to be from, if a stranger interferes.

If SO_PASSCRED is off when data is sent on a stream, and on when the data is
received, the kernel says that root has sent it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from peers import Child, become, call, needs_root, state

from peercred import AllowList, messages

pytestmark = needs_root

STRANGER = 1001
ROOT = AllowList(uids={0})


def send_as_stranger(sender, data=b"evil"):
    call(lambda: become(uid=STRANGER, gid=STRANGER) or sender.send(data))


def wait_until_taken(receiver):
    """Wait until the thread has taken the data: it does so a moment later."""
    while int.from_bytes(fcntl.ioctl(receiver, termios.FIONREAD, bytes(4)), sys.byteorder):
        time.sleep(0.001)


@contextlib.contextmanager
def waiting(receiver, receive=lambda sock: messages.receive(sock, 100, socket.MSG_WAITALL, max_fds=8)):
    """A thread waits for 100 bytes. What it gets is in the list afterwards."""
    received, number = [], receiver.fileno()
    thread = threading.Thread(target=lambda: received.append(receive(receiver)))
    thread.start()
    task = Path(f"/proc/self/task/{thread.native_id}")

    def sleeps_in_a_call():
        first = (task / "syscall").read_text()
        call, *arguments = first.split()
        # The first argument is the socket, except of socketcall(2), i386's.
        of_the_socket = call == "102" or arguments[:1] == [hex(number)]
        return of_the_socket and state(task) == "S" and (task / "syscall").read_text() == first

    while not sleeps_in_a_call():
        time.sleep(0.001)
    try:
        yield received
    finally:
        thread.join()


def test_option_that_is_turned_on_while_receive_waits(pair):
    """What a stranger sent before enable() is nobody's, and not root's."""
    receiver, sender = pair
    with waiting(receiver) as received:
        send_as_stranger(sender)
        wait_until_taken(receiver)
        messages.enable(receiver)
        sender.close()
    [message] = received
    assert (message.data, message.cred) == (b"evil", None)
    assert not ROOT.permits(message.cred)


def test_the_kernel_says_root(pair):
    """The counter-test: it is root according to the kernel."""
    receiver, sender = pair
    with waiting(receiver, lambda sock: sock.recvmsg(100, 100, socket.MSG_WAITALL)) as received:
        send_as_stranger(sender)
        wait_until_taken(receiver)
        messages.enable(receiver)
        sender.close()
    data, control, *_ = received[0]
    assert (data, control) == (b"evil", [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, bytes(12))])


OTHERS = ["nothing", "a datagram socket", "a seqpacket socket"]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("data", [b"evil", b""])
def test_descriptor_that_changes_while_receive_waits(pair, other, data):
    """It makes no difference what the descriptor is by now.

    Another thread has closed it, and perhaps opened another socket.
    """
    receiver, sender = pair
    kind = {"a datagram socket": socket.SOCK_DGRAM, "a seqpacket socket": socket.SOCK_SEQPACKET}.get(other)
    with waiting(receiver) as received:
        if data:
            send_as_stranger(sender, data)
        messages.enable(receiver)
        if kind is None:
            os.close(receiver.detach())
        else:
            with socket.socket(socket.AF_UNIX, kind) as replacement:
                os.dup2(replacement.fileno(), receiver.fileno())
        sender.close()
    [message] = received
    assert (message.data, message.cred) == (data, None)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_object_that_is_wrong_about_its_type(pair, kind):
    """A stream is a stream, whatever type the socket object was made with."""
    receiver, sender = pair
    with socket.socket(socket.AF_UNIX, kind, fileno=os.dup(receiver.fileno())) as wrong, waiting(wrong) as received:
        send_as_stranger(sender)
        wait_until_taken(receiver)
        messages.enable(receiver)
        sender.close()
    assert received[0].cred is None
    assert ROOT.permits(received[0].cred) is False


def toggle(receiver):
    """Turn SO_PASSCRED off and on, as a stranger with a copy of it can."""
    become(uid=STRANGER, gid=STRANGER)
    while True:
        for on in (0, 1):
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, on)


def send_and_send(sender):
    become(uid=STRANGER, gid=STRANGER)
    while True:
        sender.send(b"evil")


def test_stranger_who_holds_the_receiving_end(ends, effort):
    """A stranger's message is the stranger's, or nobody's, and never root's."""
    receiver, sender = ends
    messages.enable(receiver)
    seen = set()
    with Child(lambda: toggle(receiver)) as toggling, Child(lambda: send_and_send(sender)) as sending:
        end = time.monotonic() + 2 * effort
        while time.monotonic() < end or seen <= {None}:  # a slow machine takes longer
            for flags in (0, socket.MSG_WAITALL):  # it makes the call on a stream last longer
                cred = messages.receive(receiver, 10, flags).cred
                seen.add(cred and (cred.pid, cred.uid, cred.gid))
        toggling.kill()
        sending.kill()
    assert seen - {None} == {(sending.pid, STRANGER, STRANGER)}
