"""Senders that claim the ids of others."""

from __future__ import annotations

import errno
import os
from collections import Counter

import pytest
from peers import Child, become, call, needs_namespaces, needs_root, outcome, own
from raw import assert_nothing_arrives, creds, own_creds, rights, send_raw

from peercred import Cred, messages


@needs_root
def test_forged_by_a_user(ends):
    """A user who claims the ids of others is refused, and nothing arrives.

    True credentials before or after the claim make no difference.
    """
    receiver, sender = ends
    messages.enable(receiver)

    def forge():
        become(uid=1001, gid=2001)
        me = (os.getpid(), 1001, 2001)
        forged = [(me[0], 0, 2001), (me[0], 1002, 2001), (me[0], 1001, 0), (0, *me[1:]), (-1, *me[1:]), (1, *me[1:])]
        controls = [
            [before + creds(*claim) + after for before in (b"", creds(*me)) for after in (b"", creds(*me), rights(0))]
            for claim in [*forged, (os.getppid(), *me[1:]), (1, 0, 0)]
        ]
        return Counter(outcome(send_raw, sender, control) for several in controls for control in several)

    assert call(forge) == {(PermissionError, errno.EPERM): 8 * 6}
    assert_nothing_arrives(receiver)


@needs_namespaces  # only with CAP_SYS_ADMIN may a process claim another's pid
def test_forged_by_root(ends):
    """The kernel believes what root claims, and of two claims the last.

    So credentials prove only as much as root is trusted.
    """
    receiver, sender = ends
    messages.enable(receiver)
    with Child(lambda: None) as other:
        for claim in ((os.getpid(), 1, 2), (other.pid, 4294967294, 0), (other.pid, 0, 4294967294)):
            send_raw(sender, creds(*claim))
            assert messages.receive(receiver, 100).cred == Cred(*claim)
            send_raw(sender, own_creds() + rights(0) + creds(*claim))
            assert messages.receive(receiver, 100).cred == Cred(*claim)
            send_raw(sender, creds(*claim) + own_creds())
            assert messages.receive(receiver, 100).cred == own()


@needs_namespaces
@pytest.mark.parametrize("pid", [0, -1, -errno.ENODATA, -(2**31), 2**31 - 1])
def test_pid_of_no_process(ends, pid):
    """Not even root can claim a pid that no process has.

    One of these pids could pass for a hidden one, or for an error.
    """
    receiver, sender = ends
    messages.enable(receiver)
    assert outcome(send_raw, sender, creds(pid, 0, 0)) == (ProcessLookupError, errno.ESRCH)
    assert_nothing_arrives(receiver)
