"""Malformed control messages, which are bytes made by hand.

The kernel refuses them, or it ignores them.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest
from peers import SCM_PIDFD, SCM_SECURITY, outcome, own
from raw import assert_nothing_arrives, creds, own_creds, part, rights, send_raw

from peercred import messages

# Whether a 32-bit program asks a 64-bit kernel, which sees more faults.
COMPATIBLE = struct.calcsize("P") == 4 and os.uname().machine.endswith("64")
SHORT = {
    "less than a header": lambda: bytes(socket.CMSG_LEN(0) - 1),
    "credentials, then less than a header": lambda: own_creds() + bytes(socket.CMSG_LEN(0) - 1),
}

REFUSED = {
    **({shape: (control, errno.EINVAL) for shape, control in SHORT.items()} if COMPATIBLE else {}),
    "no length": (lambda: own_creds(length=0), errno.EINVAL),
    "shorter than its header": (lambda: own_creds(length=socket.CMSG_LEN(0) - 1), errno.EINVAL),
    "longer than the control data": (lambda: own_creds(length=socket.CMSG_SPACE(12) + 1), errno.EINVAL),
    "a negative length": (lambda: own_creds(length=2 ** (8 * struct.calcsize("N") - 1)), errno.EINVAL),
    "a good one, then one without a length": (lambda: rights(0) + rights(0, length=0), errno.EINVAL),
    "credentials without a payload": (lambda: part(socket.SCM_CREDENTIALS, b""), errno.EINVAL),
    "credentials a byte too short": (lambda: own_creds(length=socket.CMSG_LEN(11)), errno.EINVAL),
    "credentials a byte too long": (lambda: own_creds(length=socket.CMSG_LEN(13)), errno.EINVAL),
    "two credentials in one": (
        lambda: part(socket.SCM_CREDENTIALS, 2 * struct.pack("iII", os.getpid(), os.getuid(), os.getgid())),
        errno.EINVAL,
    ),
    "uid -1": (lambda: creds(os.getpid(), 2**32 - 1, os.getgid()), errno.EINVAL),
    "gid -1": (lambda: creds(os.getpid(), os.getuid(), 2**32 - 1), errno.EINVAL),
    "a descriptor too many": (lambda: rights(*[0] * 254), errno.EINVAL),
    "a descriptor too many, in the second part": (lambda: rights(*[0] * 253) + rights(0), errno.EINVAL),
    "descriptor -1": (lambda: rights(0, -1), errno.EBADF),
    "a descriptor that is not open": (lambda: rights(0, 2**31 - 1), errno.EBADF),
    "a pidfd": (lambda: part(SCM_PIDFD, bytes(4)), errno.EINVAL),
    "a label": (lambda: part(SCM_SECURITY, b"label\0"), errno.EINVAL),
    "type 0": (lambda: part(0, bytes(12)), errno.EINVAL),
    "type -1": (lambda: part(-1, bytes(12)), errno.EINVAL),
    "a mebibyte": (lambda: rights(*[0] * 2**18), errno.ENOMEM if COMPATIBLE else errno.ENOBUFS),
}


@pytest.mark.parametrize("shape", REFUSED)
def test_refused_by_the_kernel(ends, shape):
    """If the kernel refuses a control message, nothing arrives.

    Neither a part of the control data nor the data does.
    """
    receiver, sender = ends
    messages.enable(receiver)
    control, number = REFUSED[shape]
    with pytest.raises(OSError, match="sendmsg") as caught:
        send_raw(sender, control())
    assert caught.value.errno == number
    assert_nothing_arrives(receiver)


def test_control_data_of_two_gibibytes(ends):
    """Control data is refused if its length does not fit an int."""
    receiver, sender = ends
    messages.enable(receiver)
    assert outcome(send_raw, sender, own_creds(), b"x", 2**31) == (OSError, errno.ENOBUFS)
    assert_nothing_arrives(receiver)


IGNORED = {
    "nothing": lambda: b"",
    **({} if COMPATIBLE else SHORT),
    "root's credentials, of another level": lambda: creds(1, 0, 0, level=socket.IPPROTO_IP),
    "root's credentials, of level -1": lambda: creds(1, 0, 0, level=-1),
    "descriptors of another level": lambda: rights(0, 1, 2, level=socket.IPPROTO_TCP),
    "no descriptors": lambda: rights(),
    "three bytes of a descriptor": lambda: part(socket.SCM_RIGHTS, bytes(3)),
}


@pytest.mark.parametrize("shape", IGNORED)
@pytest.mark.parametrize("max_fds", [0, 253])
def test_ignored_by_the_kernel(ends, shape, max_fds):
    """If the kernel ignores a control message, the message names its sender.

    It has no descriptors.
    """
    receiver, sender = ends
    messages.enable(receiver)
    send_raw(sender, IGNORED[shape]())
    with messages.receive(receiver, 100, max_fds=max_fds) as message:
        assert message == messages.Message(b"x", own())
        assert (message.fds, message.pidfd) == ((), None)
