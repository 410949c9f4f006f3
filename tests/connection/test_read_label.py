"""read_label(): what this kernel says of a real peer.

faked_kernel/test_answers.py has the forms of SELinux and AppArmor.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

import peercred


def test_label_is_the_kernels(pair):
    """The label is the kernel's, less a final NUL, or "unsupported".

    It is that exactly where the kernel says ENOPROTOOPT.
    """
    try:
        expected = pair[0].getsockopt(socket.SOL_SOCKET, socket.SO_PEERSEC, 1024)
    except OSError as error:
        assert error.errno == errno.ENOPROTOOPT
        with pytest.raises(peercred.UnsupportedError, match="SO_PEERSEC") as caught:
            peercred.read_label(pair[0])
        assert caught.value.errno == errno.ENOPROTOOPT
    else:
        assert peercred.read_label(pair[0]) == expected.removesuffix(b"\0")
        own = Path("/proc/self/attr/current").read_bytes().rstrip(b"\0\n")
        assert peercred.read_label(pair[0]) == own
