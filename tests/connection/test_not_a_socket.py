"""Descriptors that are closed, or no sockets, are the kernel's own errors."""

from __future__ import annotations

import errno
import os
import select
import socket
import tempfile
from contextlib import ExitStack

import pytest
from questions import FUNCTIONS


def pipe(stack):
    fds = os.pipe()
    for fd in fds:
        stack.callback(os.close, fd)
    return fds[0]


def event(stack):
    import ctypes  # os.eventfd comes with Python 3.10 only where libc had it

    fd = ctypes.CDLL(None).eventfd(0, 0)
    stack.callback(os.close, fd)
    return fd


def regular_file(stack):
    return stack.enter_context(tempfile.TemporaryFile())


def epoll(stack):
    return stack.enter_context(select.epoll())


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("make", [pipe, event, regular_file, epoll])
def test_not_a_socket(function, make):
    """What is no socket is ENOTSOCK, and the error says what it should be."""
    with ExitStack() as stack, pytest.raises(OSError, match="must be a Unix socket") as caught:
        function(make(stack))
    assert (type(caught.value), caught.value.errno) == (OSError, errno.ENOTSOCK)


def closed_descriptor(stack):
    with socket.socket() as sock:
        return sock.fileno()


def closed_socket(stack):
    with socket.socket() as sock:
        return sock


def path_descriptor(stack):
    if not hasattr(os, "O_PATH"):
        pytest.skip("needs os.O_PATH, which PyPy lacks")
    fd = os.open("/dev/null", os.O_PATH)
    stack.callback(os.close, fd)
    return fd


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("make", [closed_descriptor, closed_socket, path_descriptor, lambda stack: -1])
def test_not_open(function, make):
    """Closed sockets and descriptors, O_PATH, and -1 are EBADF."""
    with ExitStack() as stack, pytest.raises(OSError, match="must be a Unix socket") as caught:
        function(make(stack))
    assert (type(caught.value), caught.value.errno) == (OSError, errno.EBADF)
