"""receive(): the label of a message, as the running kernel gives it.

faked_kernel/test_control_messages.py has the forms of SELinux and AppArmor.
"""

from __future__ import annotations

import socket

import pytest
from peers import enabled, own

from peercred import messages


def test_label(datagrams):
    """A message has the label that this kernel gives, or none, and its data."""
    receiver, sender = datagrams
    messages.enable(receiver, label=True)
    sender.send(b"x")
    message = messages.receive(receiver, 100)
    assert (message.data, message.cred) == (b"x", own())
    assert message.label is None or b"\0" not in message.label


def test_label_alone(ends):
    """A label alone cannot be enabled on a stream, and nothing is changed.

    There the kernel gives it only along with credentials or a pidfd.
    """
    receiver, _ = ends
    if receiver.type == socket.SOCK_STREAM:
        messages.enable(receiver)
        with pytest.raises(ValueError, match=r"stream socket, .* only with creds or pidfd"):
            messages.enable(receiver, creds=False, label=True)
        assert enabled(receiver) == {"creds"}
    else:
        messages.enable(receiver, creds=False, label=True)
        assert enabled(receiver) == {"label"}
