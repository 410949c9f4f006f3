"""receive(): the label of a message, as the running kernel gives it.

test_messages_answers.py has the forms of SELinux and AppArmor.
"""

from __future__ import annotations

import socket

import pytest
from peers import enabled, own

from peercred import messages


def test_label(datagrams):
    """What this kernel says, with SO_PASSSEC: a label of a module that labels datagrams, or none; and the data."""
    receiver, sender = datagrams
    messages.enable(receiver, label=True)
    sender.send(b"x")
    message = messages.receive(receiver, 100)
    assert (message.data, message.cred) == (b"x", own())
    assert message.label is None or b"\0" not in message.label


def test_label_alone(ends):
    """On a stream the kernel gives no label without credentials or pidfd: an error, before anything is changed."""
    receiver, _ = ends
    if receiver.type == socket.SOCK_STREAM:
        messages.enable(receiver)
        with pytest.raises(ValueError, match=r"stream socket .* along with creds or pidfd"):
            messages.enable(receiver, creds=False, label=True)
        assert enabled(receiver) == {"creds"}
    else:
        messages.enable(receiver, creds=False, label=True)
        assert enabled(receiver) == {"label"}
