"""receive(): timeouts, threads and signal handlers while it waits."""

from __future__ import annotations

import socket
import threading

import pytest
from peers import interrupted_by, own

from peercred import messages


def test_timeouts_and_blocking(datagrams):
    """A socket's timeout and its blocking mode are obeyed."""
    receiver, _ = datagrams
    receiver.settimeout(0.01)
    with pytest.raises(TimeoutError):
        messages.receive(receiver, 100)
    receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        messages.receive(receiver, 100)
    receiver.setblocking(True)
    with pytest.raises(BlockingIOError):
        messages.receive(receiver, 100, socket.MSG_DONTWAIT)


def test_waiting_keeps_no_thread_waiting(datagrams):
    """Other threads run while receive() waits."""
    receiver, sender = datagrams
    thread = threading.Thread(target=sender.send, args=(b"x",))
    got = []
    waiting = threading.Thread(target=lambda: got.append(messages.receive(receiver, 100)))
    waiting.start()
    thread.start()
    thread.join()
    waiting.join()
    assert got[0].cred == own()


def test_signal_handlers_run(datagrams):
    """Signal handlers run while receive() waits."""
    receiver, sender = datagrams
    receiver.settimeout(60)
    with interrupted_by(lambda *_: sender.send(b"x"), 0.01):
        assert messages.receive(receiver, 100).data == b"x"


@pytest.mark.parametrize(("bufsize", "flags"), [(2**64, 0), (10, 2**31), (10, 2**64)])
def test_what_recvmsg_cannot_take(datagrams, bufsize, flags):
    """A size or flags that C cannot hold are refused, and no message lost."""
    receiver, sender = datagrams
    sender.send(b"x")
    with pytest.raises(ValueError, match="bufsize or flags is out of range"):
        messages.receive(receiver, bufsize, flags)
    assert messages.receive(receiver, 10).data == b"x"
