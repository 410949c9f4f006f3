"""read_label(): labels of real peers, under SELinux and AppArmor.

The oracle is /proc/self/attr/current. A peer that may not take another label
keeps its own. faked_kernel/test_answers.py has the forms of labels.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path

import pytest
from peers import Child, outcome

import peercred

CURRENT = Path("/proc/self/attr/current")
# For SELinux, a domain of Debian's policy. For AppArmor, a profile that
# .ci/kernels loads.
TAKEN = (b"system_u:system_r:syslogd_t:s0", b"changeprofile peercred-test")


def take_label() -> None:
    for label in TAKEN:
        with contextlib.suppress(OSError):
            CURRENT.write_bytes(label)


def own_label() -> bytes | None:
    try:
        return CURRENT.read_bytes().rstrip(b"\0\n")
    except OSError:  # there is no security module that has any
        return None


@pytest.mark.parametrize("when", ["before socket(2)", "between socket(2) and connect(2)"])
def test_label_is_that_of_the_sockets_maker(server, when):
    """A label is what the process had when it made its socket.

    What it had when it connected does not count.
    """

    def peer():
        if when == "before socket(2)":
            take_label()
        expected = own_label()
        sock = socket.socket(socket.AF_UNIX)
        take_label()
        sock.connect(server.getsockname())
        sock.detach()
        return expected, own_label()

    with Child(peer) as child:
        conn, _ = server.accept()
        expected, now = child.result()
        with conn:
            kernels = outcome(conn.getsockopt, socket.SOL_SOCKET, socket.SO_PEERSEC, 1024)
            said = outcome(peercred.read_label, conn)
    print(f"{said!r} of a peer that has the label {now!r} now")
    if kernels == (OSError, errno.ENOPROTOOPT):
        assert said == (peercred.UnsupportedError, errno.ENOPROTOOPT)
    else:
        assert said == kernels.removesuffix(b"\0") == expected
