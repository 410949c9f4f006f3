"""Control messages as bytes, and sendmsg(2) for them.

A hostile sender may send what the standard library never makes.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct

import pytest
from peers import LIBC


def part(kind, payload, *, level=socket.SOL_SOCKET, length=None):
    """A control message as it is in memory. `length` may be a lie."""
    header = struct.pack("@Nii", socket.CMSG_LEN(len(payload)) if length is None else length, level, kind)
    return (header + payload).ljust(socket.CMSG_SPACE(len(payload)), b"\0")


def creds(pid, uid, gid, **lies):
    return part(socket.SCM_CREDENTIALS, struct.pack("iII", pid, uid, gid), **lies)


def own_creds(**lies):
    return creds(os.getpid(), os.getuid(), os.getgid(), **lies)


def rights(*fds, **lies):
    return part(socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds), **lies)


class Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("buffers", ctypes.c_void_p),
        ("number_of_buffers", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Buffer(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("start", ctypes.c_void_p), ("length", ctypes.c_size_t))


def send_raw(sock, control, data=b"x", control_length=None):
    """Call sendmsg(2) with any bytes as its control data.

    socket.sendmsg() sends well-formed control messages only.
    """
    memory, content = ctypes.create_string_buffer(control, len(control) or 1), ctypes.create_string_buffer(data)
    buffer = Buffer(ctypes.addressof(content), len(data))
    length = len(control) if control_length is None else control_length
    header = Header(None, 0, ctypes.addressof(buffer), 1, ctypes.addressof(memory), length, 0)
    sent = LIBC.sendmsg(sock.fileno(), ctypes.byref(header), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    if sent < 0:
        raise OSError(ctypes.get_errno(), "sendmsg")
    assert sent == len(data)


def assert_nothing_arrives(receiver):
    """No message waits in the queue of this socket."""
    with pytest.raises(BlockingIOError):
        receiver.recv(1, socket.MSG_DONTWAIT)
