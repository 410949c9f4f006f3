"""Who sent this message? For datagram sockets, and wherever a connected one may have been handed on.

    messages.enable(sock)               # first of all: what is queued before has no stamp
    msg = messages.receive(sock, 4096)  # Message(data=b"READY=1", cred=Cred(pid=2002, uid=1000, gid=1000), ...)
    messages.send(sock, b"READY=1")     # as socket.send: the kernel stamps it for a receiver that has enabled it

Linux knows three identities of a peer, which may differ:

- *Effective at connect*, which `peercred.read` gives: the ids that decided what the peer might do when it connected.
  Trust them for letting a connection in. They do not say who writes to it later.
- *Real at send*, `Message.cred` where the sender gave none: who writes this message. A set-uid-root program that
  user 1000 runs is 1000 here, and 0 above. Trust it for which user and which process a message is of.
- *Claimed*, `Message.cred` where the sender gave credentials, as `send(cred=...)` does; the receiver cannot tell. The
  kernel lets it choose among its real, effective and saved ids; root (CAP_SETUID, CAP_SETGID, CAP_SYS_ADMIN) may
  use any id and any existing process's pid, which the pidfd then follows. So a uid proves that the sender may act as
  that user, and a pid or pidfd which process it is, both as far as root is trusted.
"""

import os
import socket
import warnings
from dataclasses import dataclass, field
from itertools import starmap

from ._cred import Cred
from ._read import kernel

TYPE_CHECKING = False  # typing is not imported at run time
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    from _typeshed import ReadableBuffer
    from typing_extensions import Self

    Data: TypeAlias = ReadableBuffer | Iterable[ReadableBuffer]
    Control: TypeAlias = list[tuple[int, int, bytes]]
else:
    Any = Data = Control = object


@dataclass(frozen=True, slots=True)
class Message:
    """What `receive` received: immutable, but for the pidfd, which is the caller's to close.

    `with` closes it, `close()` does, and `detach_pidfd()` hands it over; from then on `pidfd` is None. If it is dropped
    unclosed, that is a ResourceWarning. As long as there is a pidfd, the message cannot be copied or pickled, and what
    `dataclasses.replace` makes has none: a descriptor has one owner.

    data: What was sent; of a stream, up to where the sender changes. Empty also at the end of a stream.
    cred: The sender's real ids, or its claim; see above. None where the kernel has stamped nothing: SO_PASSCRED off, or
        off when it was sent; out-of-band data; the end of a stream, which Linux itself marks as sent by root. Pid
        None is a sender outside of the reader's PID namespace; one that is outside of its user namespace as well
        cannot be told from a message without a stamp, and is None as a whole.
    pidfd: A new, close-on-exec pidfd of the process, of each message and of each MSG_PEEK. None: see `pidfd_error`.
    label: The sender's security label, without the NUL that SELinux ends it by; None if there is none.
    flags: MSG_TRUNC, MSG_CTRUNC (descriptors that were sent along have been dropped), MSG_EOR, MSG_OOB.
    address: The address that the sender's socket is bound to; None if it is not.
    pidfd_error: Why there is no pidfd though SO_PASSPIDFD is on, to be looked at or raised: EMFILE or ENFILE, the
        table of descriptors is full; ESRCH, the sender is gone and the kernel cannot refer to it; EMSGSIZE, the
        sender's own descriptors took the room. None if it is off, or the kernel has stamped nothing.
    """

    data: bytes
    cred: Cred | None
    pidfd: int | None = field(init=False, compare=False, default=None)
    label: bytes | None
    flags: int
    address: Any
    pidfd_error: OSError | None = field(init=False, compare=False, repr=False, default=None)

    def detach_pidfd(self) -> int | None:
        """The pidfd, which from now on is the caller's alone."""
        pidfd = self.pidfd
        object.__setattr__(self, "pidfd", None)
        return pidfd

    def close(self) -> None:
        """Close the pidfd, if there is one."""
        pidfd = self.detach_pidfd()
        if pidfd is not None:
            os.close(pidfd)

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        pidfd = getattr(self, "pidfd", None)  # there is no attribute after an __init__ that failed
        if pidfd is not None:
            self.close()
            warnings.warn(f"unclosed pidfd {pidfd} of {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.pidfd is not None:
            raise TypeError("a Message with a pidfd cannot be copied or pickled: close or detach the pidfd first")
        return object.__reduce_ex__(self, protocol)


class _Draft:
    """A Message in the making: see _cred.Draft. Unlike a Message it does not own its pidfd."""

    __slots__ = ("address", "cred", "data", "flags", "label", "pidfd", "pidfd_error")

    data: bytes
    cred: Cred | None
    pidfd: int | None
    label: bytes | None
    flags: int
    address: Any
    pidfd_error: OSError | None


def enable(sock: socket.socket, *, creds: bool = True, pidfd: bool = False, label: bool = False) -> None:
    """Let the kernel stamp what arrives at this socket, as given; False switches off.

    `setsockopt(fd, SOL_SOCKET, SO_PASSCRED | SO_PASSPIDFD | SO_PASSSEC, ...)`, those that are to be changed.

    Call it before bind() or listen(): what was queued before has no stamp as a rule, and connections inherit the
    options from the listener as of then. An unbound socket with one of them is bound to an abstract address when it
    connects or sends.

    Args:
        sock: A Unix socket of the standard library.
        creds, pidfd, label: What `receive` is to give.

    Raises:
        UnsupportedError: ENOPROTOOPT: the kernel lacks one that is to be switched on. ENOTSUP: this is not Linux.
        NoPeerError: EAFNOSUPPORT: not a Unix socket.
        OSError: EBADF: closed. After any error all the options are as before.
        ValueError: label without creds and pidfd on a stream socket, where the kernel gives none.
        TypeError: not a `socket.socket`.

    References:
        unix(7). SO_PASSCRED: Linux 2.2; SO_PASSSEC: 2.6.18; SO_PASSPIDFD: 6.5.
    """
    fd = _fileno(sock)
    if kernel.is_stream(fd) and label and not creds and not pidfd:
        raise ValueError("on a stream socket the kernel gives a label only along with creds or pidfd: enable one")
    kernel.set_passing(fd, bool(creds) * kernel.CREDS | bool(pidfd) * kernel.PIDFD | bool(label) * kernel.LABEL)


def receive(sock: socket.socket, bufsize: int, flags: int = 0) -> Message:
    """Receive a message, and what the kernel has stamped on it.

    `recvmsg(fd, ..., flags | MSG_CMSG_CLOEXEC)` by the standard library, so that timeouts, non-blocking sockets and
    signals are as with `socket.recv`; before it, getsockopt for which of the three options are on.

    What `cred` proves: see the module. What it does not: that the process still lives, or that `pid` still names it.

    Descriptors that the sender adds are dropped by the kernel, as there is no room for them, or closed here: with
    pidfd enabled, one of them, and then there is no pidfd; with label enabled, all. What is behind them is of
    the sender's choice, and closing it may take time (a file system in user space).

    Args:
        sock: A Unix socket of the standard library, blocking or not.
        bufsize: At most so many bytes. A longer datagram or seqpacket message is cut off (MSG_TRUNC).
        flags: MSG_PEEK, MSG_DONTWAIT, MSG_WAITALL, ..., as for recvmsg(2).

    Returns:
        A `Message`. Use it in a `with` statement if pidfd is enabled.

    Raises:
        OSError: As `socket.recvmsg`: BlockingIOError, TimeoutError, EBADF. EMSGSIZE: the credentials or the label
            have not arrived whole. No sender can bring that about; SO_TIMESTAMP on a datagram socket does. A message
            that is taken from the queue then is lost. FileNotFoundError: without /proc nobody can tell a message
            without credentials from one of a stranger to the PID namespace.
        NoPeerError, UnsupportedError, TypeError: As `enable`.

    References:
        unix(7), recv(2), cmsg(3). Linux 2.2 and later.
    """
    fd = _fileno(sock)
    passing = kernel.passing(fd)
    # Room for what is enabled and no more, for a descriptor that comes in is already too much: many fill the table, and
    # to close one may block. The kernel puts credentials first, and the pidfd last.
    room = kernel.ROOM[passing]
    received: list[tuple[bytes, Control, int, Any]] = []
    draft = _Draft()
    stamp = pidfd = label = error = None
    strays: list[int] = []
    try:
        # By way of map() the answer is in the list before a signal handler can raise, and have its descriptors lost.
        received.extend(map(sock.recvmsg, (bufsize,), (room,), (flags | kernel.MSG_CMSG_CLOEXEC,)))
        data, control, returned, address = received[0]
        for _, kind, payload in control:
            if kind == kernel.SCM_CREDENTIALS:
                stamp = payload
            elif kind == kernel.SCM_PIDFD:
                [pidfd] = memoryview(payload).cast("i")
            elif kind == kernel.SCM_SECURITY:
                label = payload
            elif kind == kernel.SCM_RIGHTS:
                strays.extend(memoryview(payload).cast("i"))
        if returned & kernel.MSG_CTRUNC:
            if (stamp is None and passing & kernel.CREDS) or (label is not None and len(label) >= kernel.LABEL_MAX):
                raise kernel.cut_off()
            if pidfd is None and passing & kernel.PIDFD:
                error = kernel.no_pidfd(None)
        if pidfd is not None and pidfd < 0:
            error, pidfd = kernel.no_pidfd(pidfd), None
        cred = None if stamp is None else kernel.unpack_cred(stamp)
        if cred is None or cred.pid is None:
            if not data and kernel.is_stream(fd):  # the end, with zeroes for credentials, in the reader's namespaces
                cred = label = None
            elif cred is not None and (cred.uid, cred.gid) == kernel.overflow_ids():
                cred = None
        draft.data = data
        draft.cred = cred
        draft.pidfd = pidfd
        draft.label = None if label is None else label.removesuffix(b"\0") or None
        draft.flags = returned & ~kernel.MSG_CMSG_CLOEXEC
        draft.address = address
        draft.pidfd_error = error
    except BaseException:
        for _, control, _, _ in received:
            _close(
                fd
                for _, kind, payload in control
                if kind in (kernel.SCM_RIGHTS, kernel.SCM_PIDFD)
                for fd in memoryview(payload).cast("i")
                if fd >= 0
            )
        raise
    draft.__class__ = Message  # type: ignore[assignment]  # which owns the pidfd
    if strays:
        _close(strays)
    return draft  # type: ignore[return-value]


def send(sock: socket.socket, data: Data, *, cred: Cred | None = None, flags: int = 0, address: Any = None) -> int:
    """Send a message, with credentials of one's own choice if need be.

    `sendmsg(fd, ..., flags)` by the standard library, with SCM_CREDENTIALS if `cred` is given. Without it, the kernel
    stamps the message with the caller's pid and real ids, if the receiver has enabled that, or this socket.

    What the kernel lets through is a claim, see the module: each of uid and gid may be the real, effective or saved
    one; root may use any ids, and the pid of any process.

    Args:
        sock: A Unix socket of the standard library, blocking or not.
        data: A bytes-like object, or an iterable of several, which are sent as one, as by `socket.sendmsg`.
        cred: What to claim; pid None means the own pid.
        flags: MSG_DONTWAIT, MSG_EOR, ..., as for sendmsg(2).
        address: Where to, if the socket is not connected.

    Returns:
        How many bytes were sent. On a stream socket that may be fewer than there are, and what is left needs
        `cred` again.

    Raises:
        OSError: As `socket.sendmsg`. With `cred` PermissionError (EPERM): not one's own ids or pid, and not
            root; ProcessLookupError (ESRCH): no such process; EINVAL: an id without a mapping. The message names
            the claim.
        ValueError: no data on a stream socket, where nothing would arrive; an id that cannot be.
        NoPeerError, UnsupportedError, TypeError: As `enable`.

    References:
        unix(7), send(2), credentials(7). Linux 2.2 and later.
    """
    stream = kernel.is_stream(_fileno(sock))
    buffers = _buffers(data)
    if cred is None:
        return sock.sendmsg(buffers, (), flags, address)
    cred = _claim(cred)
    if stream and not any(memoryview(buffer).nbytes for buffer in buffers):
        raise ValueError("no data: on a stream socket nothing would arrive, and no credentials either")
    control = [(kernel.SOL_SOCKET, kernel.SCM_CREDENTIALS, kernel.pack_cred(cred))]
    try:
        return sock.sendmsg(buffers, control, flags, address)
    except OSError as error:
        kernel.refuse_claim(error, cred)
        raise


def _fileno(sock: socket.socket) -> int:
    if isinstance(sock, socket.socket):
        return sock.fileno()
    raise TypeError(
        f"{type(sock).__name__!r} object is not a socket.socket: pass one (of a descriptor, socket.socket(fileno=fd)), "
        "and wait for it by asyncio's loop.add_reader, trio.lowlevel.wait_readable or anyio.wait_readable"
    )


def _close(fds: "Iterable[int]") -> None:
    """Close them all: in one step for signal handlers, and whatever close(2) says of what a stranger has sent."""
    ranges = [(fd, fd + 1) for fd in fds]
    list(starmap(os.closerange, ranges))


def _buffers(data: Data) -> "list[ReadableBuffer]":
    try:
        memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        if isinstance(data, str):  # an empty one would be an empty list of buffers
            raise
        return list(data)  # type: ignore[arg-type]
    return [data]  # type: ignore[list-item]


def _claim(cred: Cred) -> Cred:
    """The credentials to be sent, with the own pid for None."""
    if not isinstance(cred, Cred):
        raise TypeError(f"cred is {cred!r}, not a peercred.Cred")
    pid = os.getpid() if cred.pid is None else cred.pid
    for name, number, least, most in (
        ("pid", pid, 1, 2**31 - 1),
        ("uid", cred.uid, 0, 2**32 - 2),
        ("gid", cred.gid, 0, 2**32 - 2),
    ):
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{name} is {number!r}, not an int")
        if not least <= number <= most:
            raise ValueError(f"{name} is {number}: not from {least} to {most}")
    return Cred(pid, cred.uid, cred.gid)
