"""The Linux back end of `messages`."""

from __future__ import annotations

import os
import socket
import sys
from array import array
from errno import EAGAIN, EBADF, EINTR, EINVAL, EMSGSIZE, EPERM, ESRCH, ETOOMANYREFS
from itertools import islice
from typing import Any

from ._cred import Cred, cred_of
from ._libc import ffi, lib
from ._linux import Owner, allocate, chars, error_for, overflow_ids, unpack
from ._message import Message, message_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer

assert sys.platform == "linux"  # noqa: S101  # type checkers know no recvmsg() on Windows

# Bound once, because looking up an attribute of lib takes 50 ns.
_receive, _pass_options, _int_option = lib.receive, lib.pass_options, lib.int_option
_CREDS, _PIDFD, _LABEL, _FDS = lib.PASS_CREDS, lib.PASS_PIDFD, lib.PASS_LABEL, lib.PASS_FDS
_FDS_MAX, _LABEL_MAX = lib.FDS_MAX, lib.LABEL_MAX
_SENDER = _CREDS | _PIDFD | _LABEL  # what tells about the sender
_DONTWAIT, _PEEK, _CTRUNC = lib.MSG_DONTWAIT, lib.MSG_PEEK, lib.MSG_CTRUNC

_NULL = ffi.NULL

_NO_ROOM = (
    "the kernel had no room for the message's credentials or label: turn off other control messages, such as "
    "SO_TIMESTAMP, and do not change the options while receiving"
)


def enable(sock: socket.socket, creds: bool, pidfd: bool, label: bool, fds: bool) -> None:
    """SO_PASSCRED, SO_PASSPIDFD, SO_PASSSEC, SO_PASSRIGHTS: all or none."""
    fd = _fileno(sock)
    _check_family(fd)
    wanted = creds * _CREDS | pidfd * _PIDFD | label * _LABEL | fds * _FDS
    if wanted & _SENDER == _LABEL and _is_stream(fd):
        raise ValueError("on a stream socket, the kernel sends a label only with creds or pidfd: enable one of them")
    result = lib.set_pass_options(fd, wanted)
    if result < 0:
        raise error_for(fd, result)


def receive(sock: socket.socket, bufsize: int, flags: int, max_fds: int) -> Message:
    """recvmsg(2)."""
    fd = _fileno(sock)
    if not 0 <= max_fds <= _FDS_MAX:
        raise ValueError(f"max_fds must be from 0 to {_FDS_MAX} (the kernel's limit), not {max_fds}")
    if not 0 <= bufsize <= sys.maxsize:
        raise ValueError(f"bufsize must be from 0 to {sys.maxsize}, not {bufsize}")
    _check_flags(flags)
    # A socket with a timeout never waits in C.
    flags_in_c = flags if socket.socket.gettimeout(sock) is None else flags | _DONTWAIT
    owner = None
    try:
        data = allocate(chars, bufsize)
        while True:
            options = _pass_options(fd, _SENDER)
            if options < 0:
                raise error_for(fd, options)
            if options & (_PIDFD | _LABEL) or max_fds:
                owner = owner or Owner()
            label = allocate(chars, _LABEL_MAX) if options & _LABEL else _NULL
            owned = owner.struct if owner else _NULL
            received = _receive(fd, data, bufsize, flags_in_c, options, max_fds, label, owned)
            length = received.length
            if length >= 0:
                break
            if length == -EAGAIN and not flags & _DONTWAIT:
                # The standard library waits, as this socket does, or raises.
                try:
                    socket.socket.recvmsg(sock, 0, 0, _PEEK | _DONTWAIT)
                except BlockingIOError:
                    # PyPy's does not wait again if another thread was faster.
                    if not socket.socket.gettimeout(sock):
                        raise
            elif length == -EMSGSIZE:
                raise OSError(EMSGSIZE, _NO_ROOM)
            elif length != -EINTR:
                raise error_for(fd, length, "recvmsg(2)")
            fd = _fileno(sock)  # another thread may have closed it

        cred = cred_of(received.cred)
        fields = {"data": unpack(data, length), "cred": cred, "flags": received.flags}
        if received.address_length > 0:
            fields["address"] = _address(unpack(received.address.sun_path, received.address_length))
        if received.label_length:
            fields["label"] = unpack(label, received.label_length).removesuffix(b"\0") or None
        if cred is None or cred.pid is None:
            _disbelieve(sock, fd, fields)
        if owner:
            if options & _PIDFD and not owned.count[owner.PIDFD]:
                fields["pidfd_error"] = _no_pidfd(-received.pidfd_error, received.flags)
            if received.flags & _CTRUNC:
                owner.close(owner.STRAYS)
            if received.kept:
                fields["_owner"] = owner
        return message_of(fields)
    except BaseException:
        if owner:
            owner.close()
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
    _check_family(fd)
    _check_flags(flags)
    attached = tuple(islice(fds, _FDS_MAX + 1))
    if len(attached) > _FDS_MAX:
        raise ValueError(f"at most {_FDS_MAX} fds can be sent, which is the kernel's limit")
    control: list[tuple[int, int, ReadableBuffer]] = []
    if cred is not None:
        ucred = ffi.new("struct ucred *", {"pid": cred.pid or os.getpid(), "uid": cred.uid, "gid": cred.gid})
        control.append((lib.SOL_SOCKET, lib.SCM_CREDENTIALS, bytes(ffi.buffer(ucred))))
    if attached:
        control.append((lib.SOL_SOCKET, lib.SCM_RIGHTS, array("i", attached)))
    if control and not any(memoryview(buffer).nbytes for buffer in buffers) and _is_stream(fd):
        raise ValueError("no data: on a stream socket, credentials and descriptors arrive only along with data")
    try:
        return sock.sendmsg(buffers, control, flags, address)
    except BufferError as failure:
        raise ValueError(f"data is not contiguous: {failure}") from failure
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
    # Whatever its fileno() says, ask the descriptor that recvmsg() uses.
    plain = socket.socket
    try:
        if type(sock) is plain or (issubclass(type(sock), plain) and type(sock).recvmsg is plain.recvmsg):
            return plain.fileno(sock)
    except AttributeError:  # eventlet's have none of these methods
        pass
    raise TypeError(
        f"{type(sock).__name__!r} object is not a plain socket.socket: pass one. For a descriptor, that is "
        "socket.socket(fileno=fd). To wait for it, use asyncio's loop.add_reader, trio.lowlevel.wait_readable or "
        "anyio.wait_readable"
    )


def _check_flags(flags: int) -> None:
    if not -(2**31) <= flags < 2**31:
        raise ValueError(f"flags must fit a C int, and {flags} does not")


def _check_family(fd: int) -> None:
    result = _pass_options(fd, 0)
    if result < 0:
        raise error_for(fd, result)


def _is_stream(fd: int) -> bool:
    return _int_option(fd, lib.SO_TYPE) == lib.SOCK_STREAM


def _disbelieve(sock: socket.socket, fd: int, fields: dict[str, Any]) -> None:
    """Believe in a sender without a visible pid only if it is certain.

    The kernel says pid 0 for a sender outside the PID namespace, but also for
    none.
    """
    cred = fields["cred"]
    if cred is None and fields["data"]:
        return  # only the end of a stream has neither, and its label must go
    # By now, another thread may have closed the descriptor or replaced it.
    kind = _int_option(fd, lib.SO_TYPE)
    if kind != sock.type or kind not in (lib.SOCK_DGRAM, lib.SOCK_SEQPACKET):
        # The end of a stream comes as pid 0 of root, and so does data that was
        # sent while SO_PASSCRED was off, if it is on by now.
        fields["cred"] = fields["label"] = None
    elif cred is not None:
        try:
            early = (cred.uid, cred.gid) == overflow_ids()  # sent before SO_PASSCRED was on
        except OSError:  # a full table of descriptors, say
            early = True
        if early:
            fields["cred"] = None


def _address(raw: bytes) -> str | bytes:
    """An abstract address as bytes, and a path as str."""
    return raw if raw.startswith(b"\0") else os.fsdecode(raw.partition(b"\0")[0])


def _no_pidfd(errno: int, flags: int) -> OSError | None:
    """Why there is no pidfd."""
    if errno == EINVAL:
        return ProcessLookupError(
            ESRCH, "the sender is gone, and this kernel can no longer identify it (Linux 6.16 can)"
        )
    if errno:
        return OSError(errno, f"{os.strerror(errno)}: the kernel could not open a pidfd of the sender")
    if flags & _CTRUNC:
        return OSError(EMSGSIZE, "no room for the pidfd: other control data, such as descriptors, took it")
    return None
