"""receive(): messages for which the kernel vouches for nobody."""

from __future__ import annotations

import array
import errno
import socket

import pytest
from peers import call, overflow_ids, own

from peercred import messages


def test_early_message_has_no_sender(ends):
    """A message that was queued before the option was on has no sender.

    The kernel says (0, 65534, 65534).
    """
    receiver, sender = ends
    call(lambda: sender.send(b"early"))
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    control = receiver.recvmsg(100, 100, socket.MSG_PEEK)[1]
    assert array.array("I", control[0][2]).tolist() == [0, *overflow_ids()]
    message = messages.receive(receiver, 100)
    assert (message.data, message.cred) == (b"early", None)
    sender.send(b"late")
    assert messages.receive(receiver, 100).cred == own()


def test_early_and_late_on_one_stream(pair):
    """Early data of a stream is not named after the sender of what follows."""
    receiver, sender = pair
    sender.send(b"early")
    messages.enable(receiver)
    sender.send(b"late")
    first, second = messages.receive(receiver, 100), messages.receive(receiver, 100)
    assert (first.data, first.cred) == (b"early", None)
    assert (second.data, second.cred) == (b"late", own())


@pytest.mark.parametrize("how", ["closed", "shut down by the peer", "shut down"])
@pytest.mark.parametrize("flags", [0, socket.MSG_PEEK])
@pytest.mark.parametrize("bufsize", [0, 100])
def test_end_of_a_stream_has_no_sender(pair, how, flags, bufsize):
    """The end of a stream has no sender, though the kernel says root."""
    receiver, sender = pair
    messages.enable(receiver)
    if how == "closed":
        sender.close()
    else:
        (receiver if how == "shut down" else sender).shutdown(socket.SHUT_RDWR)
    assert receiver.recvmsg(100, 100)[1][0][2] == bytes(12)
    message = messages.receive(receiver, bufsize, flags)
    assert (message.data, message.cred, message.label) == (b"", None, None)


def test_end_of_a_seqpacket_connection():
    """The end of a seqpacket connection has no sender."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with receiver:
        messages.enable(receiver)
        sender.close()
        assert messages.receive(receiver, 100).cred is None


def test_out_of_band_data_has_no_sender(pair):
    """Out-of-band data has no sender."""
    receiver, sender = pair
    messages.enable(receiver)
    try:
        sender.send(b"!", socket.MSG_OOB)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP  # a kernel without CONFIG_AF_UNIX_OOB
        return
    message = messages.receive(receiver, 1, socket.MSG_OOB)
    assert (message.data, message.cred, message.flags) == (b"!", None, socket.MSG_OOB)
