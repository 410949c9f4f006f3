"""receive(): timeouts, threads and signal handlers while it waits."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time

import pytest
from peers import DEADLINE, interrupted_by, outcome, own, state

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


@pytest.mark.parametrize(("flags", "error"), [(0, TimeoutError), (socket.MSG_DONTWAIT, BlockingIOError)])
def test_timeout_of_a_file_that_blocks(datagrams, flags, error):
    """A timeout is obeyed even if another process has made the file block."""
    receiver, _ = datagrams
    receiver.settimeout(0.01)
    os.set_blocking(receiver.fileno(), True)
    with pytest.raises(error):
        messages.receive(receiver, 100, flags)


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


@pytest.mark.parametrize("timeout", [None, 60])
def test_signal_handlers_run(datagrams, timeout):
    """Signal handlers run while receive() waits."""
    receiver, sender = datagrams
    receiver.settimeout(timeout)
    with interrupted_by(lambda *_: sender.send(b"x"), 0.01):
        assert messages.receive(receiver, 100).data == b"x"


@pytest.fixture(params=["forever", "with a timeout", "with SO_RCVTIMEO"])
def patient(ends, request):
    """A receiver of each type that waits in C or in Python, and a sender."""
    receiver, _ = ends
    if request.param == "with a timeout":
        receiver.settimeout(DEADLINE)
    if request.param == "with SO_RCVTIMEO":
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", DEADLINE, 0))
    return ends


@contextlib.contextmanager
def received_in_a_thread(receiver, flags=0):
    """What receive() returns or raises, once this ends."""
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(outcome(messages.receive, receiver, 100, flags)))
    thread.start()
    # It waits for the socket, because this thread has the GIL.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended already
        while state(f"/proc/self/task/{thread.native_id}") != "S":
            time.sleep(0.001)
    yield outcomes
    thread.join()


def test_message_that_comes_late(patient):
    """A message that comes while receive() waits is received."""
    receiver, sender = patient
    messages.enable(receiver)
    with received_in_a_thread(receiver) as outcomes:
        sender.send(b"x")
    assert outcomes == [messages.Message(b"x", own())]


@pytest.mark.parametrize("timeout", [None, 60])
def test_shut_down_while_it_waits(kind, timeout):
    """If the socket is shut down meanwhile, there is no data."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, kind)
    with receiver, sender:
        receiver.settimeout(timeout)
        with received_in_a_thread(receiver) as outcomes:
            receiver.shutdown(socket.SHUT_RD)
    assert outcomes == [messages.Message(b"")]


def test_several_that_wait_for_one_message(patient):
    """Of several threads that wait, each gets one message."""
    receiver, sender = patient
    with contextlib.ExitStack() as stack:
        outcomes = [stack.enter_context(received_in_a_thread(receiver)) for _ in range(5)]
        for number in range(5):
            sender.send(b"%d" % number * 100)
    assert sorted(each.data[:1] for (each,) in outcomes) == [b"0", b"1", b"2", b"3", b"4"]


def test_waiting_that_fails(datagrams, monkeypatch):
    """If another thread takes the message, a socket with a timeout waits again.

    PyPy's recvmsg() raises BlockingIOError then. CPython's cannot be made to.
    """
    receiver, sender = datagrams
    receiver.settimeout(DEADLINE)
    calls = []

    def gone(*_):
        calls.append(1)
        sender.send(b"x")
        raise BlockingIOError

    monkeypatch.setattr(socket.socket, "recvmsg", gone)
    assert messages.receive(receiver, 100).data == b"x"
    assert calls == [1]


def test_closed_while_it_waits(ends):
    """If the socket is closed while Python waits for it, that is an error.

    (A recvmsg(2) that waits in the kernel goes on.)
    """
    receiver, _ = ends
    receiver.settimeout(0.2)
    with received_in_a_thread(receiver) as outcomes:
        os.close(receiver.detach())
    assert outcomes[0] in ((OSError, errno.EBADF), (TimeoutError, None))


@pytest.mark.parametrize("timeout", [None, 0, 60])
def test_so_rcvtimeo(ends, timeout):
    """SO_RCVTIMEO ends the wait of a blocking socket, as it does for recv()."""
    receiver, _ = ends
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 1000))
    receiver.settimeout(timeout if timeout != 60 else 0.01)
    assert outcome(messages.receive, receiver, 100) in ((BlockingIOError, errno.EAGAIN), (TimeoutError, None))


def test_handler_that_raises(patient):
    """What a signal handler raises ends the wait."""
    receiver, sender = patient

    def handler(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), interrupted_by(handler, 0.05):
        messages.receive(receiver, 100)
    sender.send(b"x")
    assert messages.receive(receiver, 100).data == b"x"


SO_PEEK_OFF = 42  # not on parisc and sparc


@pytest.mark.parametrize("timeout", [None, 60])
def test_offset_of_peeking(pair, timeout):
    """While it waits, SO_PEEK_OFF stays where it is, so no byte is skipped."""
    receiver, sender = pair
    receiver.settimeout(timeout)
    receiver.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    with received_in_a_thread(receiver, socket.MSG_PEEK) as outcomes:
        sender.send(b"abc")
    assert outcomes[0].data == b"abc"


def test_error_of_a_handler(ends):
    """What a handler raises stays what it is, even an OverflowError."""

    def handler(*_):
        raise OverflowError("mine")

    with pytest.raises(OverflowError, match="mine"), interrupted_by(handler, 0.05):
        messages.receive(ends[0], 100)
