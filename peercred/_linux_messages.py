"""The Linux back end of `messages`.

sendmsg(2) and recvmsg(2) can block, so use the standard library's: the compiled
module keeps the GIL.
"""

from __future__ import annotations

import os
import socket
import sys
from array import array
from errno import (
    EBADF,
    EINVAL,
    EMSGSIZE,
    ENODATA,
    ENOPROTOOPT,
    EPERM,
    ESRCH,
    ETOOMANYREFS,
)
from itertools import islice
from typing import Any, TypeAlias

from ._cred import Cred, cred_of
from ._libc import ffi, lib
from ._linux import error_for, overflow_ids
from ._message import Message
from ._owned import NOTHING, Owned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer

assert sys.platform == "linux"  # noqa: S101  # type checkers know no recvmsg() on Windows

# What recvmsg() returns: the data; the level, type and payload of each control
# message; flags; the sender's address.
Control: TypeAlias = list[tuple[int, int, bytes]]
Received: TypeAlias = tuple[bytes, Control, int, Any]

# Bound once, because looking up an attribute of lib takes 50 ns.
_enabled, _control_size, _unpack_ucred = lib.enabled, lib.control_size, lib.unpack_ucred
_CREDS, _PIDFD, _LABEL, _FDS = lib.PASS_CREDS, lib.PASS_PIDFD, lib.PASS_LABEL, lib.PASS_FDS
_FDS_MAX, _LABEL_MAX = lib.FDS_MAX, lib.LABEL_MAX
_SENDER = _CREDS | _PIDFD | _LABEL  # what tells about the sender
_SOL_SOCKET, _CLOEXEC, _CTRUNC = lib.SOL_SOCKET, lib.MSG_CMSG_CLOEXEC, lib.MSG_CTRUNC
_SCM_CREDENTIALS, _SCM_SECURITY = lib.SCM_CREDENTIALS, lib.SCM_SECURITY
_SCM_PIDFD, _SCM_RIGHTS = lib.SCM_PIDFD, lib.SCM_RIGHTS

# The options that enable() cannot do without.
_OPTIONS = {
    "SO_PASSCRED": (_CREDS, lib.SO_PASSCRED),
    "SO_PASSPIDFD": (_PIDFD, lib.SO_PASSPIDFD),
    "SO_PASSSEC": (_LABEL, lib.SO_PASSSEC),
}

# Fill in a Message directly: its __init__ takes more than twice as long. A
# field that is not set has the class's default.
_new_object = object.__new__
_set_fields = vars(Message)["__dict__"].__set__


def enable(sock: socket.socket, creds: bool, pidfd: bool, label: bool, fds: bool) -> None:
    """SO_PASSCRED, SO_PASSPIDFD, SO_PASSSEC, SO_PASSRIGHTS: all or none."""
    fd = _fileno(sock)
    if label and not creds and not pidfd and _is_stream(fd):
        raise ValueError("on a stream socket, the kernel sends a label only with creds or pidfd: enable one of them")
    wanted = creds * _CREDS | pidfd * _PIDFD | label * _LABEL | fds * _FDS
    result = lib.set_enabled(fd, wanted)
    if result < 0:
        names = [name for name, (bit, _) in _OPTIONS.items() if wanted & bit]
        lacking = [name for name in names if lib.int_option(fd, _OPTIONS[name][1]) == -ENOPROTOOPT]
        raise error_for(fd, result, ", ".join(lacking or names))


def receive(sock: socket.socket, bufsize: int, flags: int, max_fds: int) -> Message:
    """recvmsg(2)."""
    fd = _fileno(sock)
    if not 0 <= max_fds <= _FDS_MAX:
        raise ValueError(f"max_fds must be from 0 to {_FDS_MAX} (the kernel's limit), not {max_fds}")
    enabled = _enabled(fd, _SENDER)
    if enabled < 0:
        raise error_for(fd, enabled, "SO_PASSCRED")
    # No more room than needed: stray descriptors that get in fill the table,
    # and closing one can block.
    size = _control_size(enabled, max_fds)
    received: list[Received] = []
    owned = None
    try:
        # By way of map() it is in the list before a signal handler can raise.
        try:
            received.extend(map(sock.recvmsg, (bufsize,), (size,), (flags | _CLOEXEC,)))
        except OverflowError as failure:
            raise ValueError(f"bufsize or flags is out of range: {failure}") from failure
        data, control, got, address = received[0]
        payloads = _parsed(control)
        if _SCM_RIGHTS in payloads or _SCM_PIDFD in payloads:
            owned = _owners(payloads, max_fds)
            # Only now, when `owned` has them, so that they are closed below.
            for each in owned:
                each.keep()
        cred, label = _sender(fd, data, payloads, got, enabled)
        fields = {"data": data, "cred": cred, "label": label, "flags": got & ~_CLOEXEC, "address": address}
        if owned:
            pidfd, fds, strays = owned
            fields["_pidfd"], fields["_fds"] = pidfd, fds
            if strays is not NOTHING:
                strays.close()
                fields["flags"] |= _CTRUNC
        if enabled & _PIDFD:
            fields["pidfd_error"] = _no_pidfd(payloads, got)
        message = _new_object(Message)
        _set_fields(message, fields)
        return message
    except BaseException:
        # A signal handler may raise as well. If a second one raises in here,
        # descriptors that are not in `owned` yet may stay open.
        for each in owned or (_owners(_parsed(received[0][1]), 0) if received else ()):
            each.close()
        raise


def send(
    sock: socket.socket,
    buffers: list[ReadableBuffer],
    cred: Cred | None,
    fds: Iterable[int],
    flags: int,
    address: Any,
) -> int:
    """sendmsg(2)."""
    fd = _fileno(sock)
    stream = _is_stream(fd)
    attached = tuple(islice(fds, _FDS_MAX + 1))
    if len(attached) > _FDS_MAX:
        raise ValueError(f"at most {_FDS_MAX} fds can be sent, which is the kernel's limit")
    control: list[tuple[int, int, ReadableBuffer]] = []
    if cred is not None:
        ucred = ffi.new("struct ucred *", {"pid": cred.pid or os.getpid(), "uid": cred.uid, "gid": cred.gid})
        control.append((_SOL_SOCKET, _SCM_CREDENTIALS, bytes(ffi.buffer(ucred))))
    if attached:
        control.append((_SOL_SOCKET, _SCM_RIGHTS, array("i", attached)))
    if control and stream and not any(memoryview(buffer).nbytes for buffer in buffers):
        raise ValueError("no data: on a stream socket, credentials and descriptors arrive only along with data")
    try:
        return sock.sendmsg(buffers, control, flags, address)
    except (BufferError, OverflowError) as failure:
        raise ValueError(f"data is not contiguous, or flags is out of range: {failure}") from failure
    except OSError as failure:
        if not control or failure.errno not in (EPERM, ESRCH, EINVAL, EBADF, ETOOMANYREFS):
            raise
        what = f"sending as {cred}" if cred is not None else "sending"
        if attached:
            what += f" with the descriptors {attached}"
            if failure.errno == EPERM:
                what += ", which the receiver may refuse (SO_PASSRIGHTS)"
        raise OSError(failure.errno, f"{failure.strerror}: {what}") from failure


def _fileno(sock: socket.socket) -> int:
    # A subclass with its own recvmsg(), such as SSLSocket, has no messages.
    # Ask the descriptor that recvmsg() uses, whatever its fileno() says.
    plain = socket.socket
    if type(sock) is plain or (issubclass(type(sock), plain) and type(sock).recvmsg is plain.recvmsg):
        return plain.fileno(sock)
    raise TypeError(
        f"{type(sock).__name__!r} object is not a plain socket.socket: pass one (of a descriptor, "
        "socket.socket(fileno=fd)), and wait for it by asyncio's loop.add_reader, trio.lowlevel.wait_readable or "
        "anyio.wait_readable"
    )


def _parsed(control: Control) -> dict[int, bytes]:
    """The payload of each type of control message.

    Linux sends one of each. If there were two, they would be joined, so that
    credentials would be too long and refused, and no descriptor lost.
    """
    payloads: dict[int, bytes] = {}
    for level, kind, payload in control:
        if level == _SOL_SOCKET:
            payloads[kind] = payloads.get(kind, b"") + payload
    return payloads


def _owners(payloads: dict[int, bytes], max_fds: int) -> tuple[Owned, Owned, Owned]:
    """The message's pidfd, its descriptors, and the strays."""
    pidfds = _ints(payloads[_SCM_PIDFD]) if _SCM_PIDFD in payloads else []
    fds = _ints(payloads[_SCM_RIGHTS]) if _SCM_RIGHTS in payloads else []
    strays = fds[max_fds:] + pidfds[1:]
    return (
        Owned(pidfds[:1]) if pidfds else NOTHING,
        Owned(fds[:max_fds]) if fds else NOTHING,
        Owned(strays) if strays else NOTHING,
    )


def _ints(payload: bytes) -> list[int]:
    return memoryview(payload[: len(payload) & -4]).cast("i").tolist()


def _sender(
    fd: int, data: bytes, payloads: dict[int, bytes], flags: int, enabled: int
) -> tuple[Cred | None, bytes | None]:
    """The sender according to SCM_CREDENTIALS, and the label (SCM_SECURITY)."""
    ucred_bytes, label = payloads.get(_SCM_CREDENTIALS), payloads.get(_SCM_SECURITY)
    cred = None
    if ucred_bytes is not None:
        ucred = _unpack_ucred(ucred_bytes, len(ucred_bytes))
        cred = cred_of(ucred)
        if cred is None and ucred.pid != -ENODATA:
            raise _cut_off()
    # MSG_CTRUNC alone does not mean that: descriptors may be what is lost. A
    # label as long as its room may have been longer.
    lacking = (ucred_bytes is None and enabled & _CREDS) or len(label or b"") >= _LABEL_MAX
    if lacking and flags & _CTRUNC:
        raise _cut_off()
    if cred is None or cred.pid is None:
        if not data and _is_stream(fd):  # the end of the stream, which comes as pid 0, uid 0
            return None, None
        if cred is not None and (cred.uid, cred.gid) == overflow_ids():  # sent before SO_PASSCRED was on
            cred = None
    return cred, (label or b"").removesuffix(b"\0") or None


def _cut_off() -> OSError:
    return OSError(
        EMSGSIZE,
        "the kernel had no room for the message's credentials or label: turn off other control messages, "
        "such as SO_TIMESTAMP, and do not change the options while receiving",
    )


def _no_pidfd(payloads: dict[int, bytes], flags: int) -> OSError | None:
    """Why SCM_PIDFD is missing, or holds a negative errno."""
    payload = payloads.get(_SCM_PIDFD)
    if payload is None:
        if flags & _CTRUNC:
            return OSError(EMSGSIZE, "no room for the pidfd: other control data, such as descriptors, took it")
        return None
    errno = -int.from_bytes(payload, sys.byteorder, signed=True)
    if errno <= 0:
        return None
    if errno == EINVAL:
        return ProcessLookupError(
            ESRCH, "the sender is gone, and this kernel can no longer identify it (Linux 6.16 can)"
        )
    return OSError(errno, f"{os.strerror(errno)}: the kernel could not open a pidfd of the sender")


def _is_stream(fd: int) -> bool:
    result = _enabled(fd, 0)  # refuses what is not a Unix socket
    if result < 0:
        raise error_for(fd, result, "SO_DOMAIN")
    return lib.int_option(fd, lib.SO_TYPE) == lib.SOCK_STREAM
