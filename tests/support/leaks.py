"""A check that many calls leave nothing behind, and things to call with."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import socket
import sys

from peers import LIBC, open_descriptors

CALLS = 500  # of each function with each argument; the effort multiplies it


class Malloc(ctypes.Structure):
    """struct mallinfo2."""

    NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in NAMES)


def memory():
    """How many bytes libc has allocated.

    It is 0 where libc does not tell: in musl, and in glibc before 2.33.
    """
    if not hasattr(LIBC, "mallinfo2"):
        return 0
    LIBC.mallinfo2.restype = Malloc
    info = LIBC.mallinfo2()
    return info.uordblks + info.hblkhd


def footprint():
    """Numbers of open descriptors, of Python's blocks, and of bytes.

    PyPy tells no number of blocks.
    """
    blocks = sys.getallocatedblocks() if hasattr(sys, "getallocatedblocks") else 0
    return len(open_descriptors()), blocks, memory()


def assert_no_leak(function, arguments, calls):
    """Call the function many times, and check that nothing is left.

    It may raise an exception each time.
    """

    def run(number):
        for _ in range(number):
            with contextlib.suppress(OSError, TypeError, ValueError):
                function(*arguments)

    def grows():
        before = footprint()
        run(calls)
        gc.collect()
        after = footprint()
        descriptors, blocks, allocated = (new - old for new, old in zip(after, before, strict=True))
        assert descriptors == 0
        # Python itself takes some, but not one for each call.
        return blocks >= calls / 2 or allocated >= calls * 8  # malloc(1) takes 24 bytes

    # Coverage's tracer adds references to None.
    counted = [argument for argument in arguments if argument is not None]
    gc.freeze()  # gc.collect() is faster if it ignores what is there already
    try:
        run(calls // 4)  # fill caches and free lists
        gc.collect()
        counts = list(map(sys.getrefcount, counted))
        # A leak grows each time. What grows once is a cache of Python's.
        assert not (grows() and grows())
        assert list(map(sys.getrefcount, counted)) == counts
    finally:
        gc.unfreeze()


def two_ends(stack, kind=socket.SOCK_STREAM):
    return [stack.enter_context(sock) for sock in socket.socketpair(socket.AF_UNIX, kind)]


def connection(stack):
    return two_ends(stack)[0]


def closed(stack):
    sock = connection(stack)
    sock.close()
    return sock


def tcp(stack):
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return stack.enter_context(socket.create_connection(server.getsockname()))
