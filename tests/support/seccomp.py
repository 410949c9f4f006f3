"""System calls that the kernel refuses to a process (seccomp(2))."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

import pytest
from peers import LIBC

NUMBERS = {
    "x86_64": {"getsockopt": 55, "setsockopt": 54, "getpeername": 52, "fcntl": 72},
    "aarch64": {"getsockopt": 209, "setsockopt": 208, "getpeername": 205, "fcntl": 25},
}.get(platform.machine(), {})
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # the words of a BPF program
ERRNO, ALLOW = 0x0005_0000, 0x7FFF_0000

needs_seccomp = pytest.mark.skipif(
    not NUMBERS or ctypes.sizeof(ctypes.c_void_p) != 8, reason="needs a machine whose system calls are known here"
)


def refuse(name: str, number: int, argument: tuple[int, int] | None = None) -> None:
    """From now on, a system call fails with this errno, or pretends to succeed.

    With 0 it returns 0 and does nothing. It does so whatever its arguments are,
    or if this one, counted from 0, has this value. Nobody can take that back:
    call it in a child.
    """
    checks = [(0, NUMBERS[name])]
    if argument is not None:
        checks.append((16 + 8 * argument[0], argument[1]))
    program = b""
    for left, (place, value) in zip(range(len(checks) - 1, -1, -1), checks, strict=True):
        program += struct.pack("HBBI", LOAD, 0, 0, place)
        program += struct.pack("HBBI", EQUAL, 0, 2 * left + 1, value)
    program += struct.pack("HBBI", RETURN, 0, 0, ERRNO | number) + struct.pack("HBBI", RETURN, 0, 0, ALLOW)
    instructions = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions))
    assert LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, described) == 0, ctypes.get_errno()


def option(number: int) -> tuple[int, int]:
    """The argument of getsockopt(2) and setsockopt(2) that is this option."""
    return 2, int(number)


def refuse_option(number: int, error: int = errno.ENOPROTOOPT) -> None:
    """From now on, the kernel lacks this option."""
    for name in ("getsockopt", "setsockopt"):
        refuse(name, error, option(number))
