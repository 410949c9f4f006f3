"""Who sent this message?

Use this for datagram sockets, and for connections that may have been
passed on.

    from peercred import messages  # `import peercred` does not load it

    messages.enable(sock)  # before bind() or listen()
    msg = messages.receive(sock, 4096)
    msg.data               # b"READY=1"
    msg.cred               # Cred(pid=2002, uid=1000, gid=1000)
    messages.send(sock, b"READY=1")

Linux knows three identities of a peer, and they can differ:

- *Effective ids at connect*, from `peercred.read`. They say what the peer
  was allowed to do when it connected, not who writes to it later.
- *Real ids at send*, in `Message.cred`, if the sender added no
  credentials. A set-uid-root program that user 1000 runs is 1000 here,
  until it calls setuid(0), and 0 in `read`.
- *Claimed ids*, in `Message.cred`, if the sender added credentials
  itself, as `messages.send(sock, data, cred=...)` does. A sender may
  claim its real, effective or saved ids. Root (CAP_SETUID, CAP_SETGID,
  CAP_SYS_ADMIN) may claim any ids and the pid of any process, and the
  pidfd follows the pid.

The receiver cannot tell the last two apart. So a uid proves only that the
sender may act as that user. Trust the pid and the pidfd only as far as
you trust root.

To decide about a message, use `AllowList.permits(message.cred)`. It looks
at the uid and the primary group: a message has no supplementary groups.

On a *stream*, believe `Message.cred` only if no stranger also holds the
receiving end. Whoever passed you the socket may have kept it, and can turn
SO_PASSCRED off. Then the kernel merges data of several senders under the
ids of one, and reports other data as sent by pid 0 of root. So pid 0 is
never believed on a stream, even if it is a sender outside the PID
namespace. For such senders, use a datagram or seqpacket socket, or
`peercred.read`.

Under systemd's socket activation, the message that starts the service was
queued before the service could call `enable`. It has a sender only if the
.socket unit says `PassCredentials=yes`.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import index
from typing import TYPE_CHECKING, Any, TypeAlias

from ._cred import Cred, as_int, check_cred
from ._descriptor import HasFileno
from ._message import Message

if sys.platform == "linux":
    from . import _linux_messages as kernel
else:
    from . import _unsupported as kernel

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
else:
    Buffer = bytes | bytearray | memoryview

__all__ = ["Message", "enable", "receive", "send"]


def __dir__() -> list[str]:
    return __all__  # not what this module imports for itself


Data: TypeAlias = Buffer | Iterable[Buffer]

_IOV_MAX = 1024  # the kernel's UIO_MAXIOV


def enable(
    sock: socket.socket, *, creds: bool = True, pidfd: bool = False, label: bool = False, fds: bool = True
) -> None:
    """Choose what comes with each message that this socket receives.

    This calls `setsockopt(fd, SOL_SOCKET, ...)` to turn each of
    SO_PASSCRED, SO_PASSPIDFD, SO_PASSSEC and SO_PASSRIGHTS on or off.

    Call it before bind() or listen(): as a rule, messages that are queued
    before it have no sender. Accepted connections inherit the options. With
    `creds` or `pidfd`, Linux binds an unbound socket to an abstract address
    when it connects or sends.

    Args:
        sock: A Unix socket of the standard library.
        creds: Fill in `Message.cred`.
        pidfd: Fill in `Message.pidfd`.
        label: Fill in `Message.label`.
        fds: Let senders attach descriptors. If False, a sender that
            attaches any gets EPERM. Only that protects you from descriptors
            that take hours to close (see `receive`). Before Linux 6.16,
            False changes nothing. The default is True because some senders
            attach descriptors without need, such as `systemd-notify`
            without --no-block.

    Raises:
        UnsupportedError: ENOPROTOOPT: the kernel lacks an option that you
            turned on. ENOTSUP: this is not Linux.
        NoPeerError: EAFNOSUPPORT: it is not a Unix socket.
        OSError: EBADF: it is closed. An error leaves all options as they
            were.
        ValueError: `label` without `creds` or `pidfd` on a stream socket:
            there, the kernel would send no label.
        TypeError: It is no `socket.socket`, or has a recvmsg() of its own,
            as `ssl.SSLSocket` does.

    See unix(7). SO_PASSCRED: Linux 2.2; SO_PASSSEC: 2.6.18; SO_PASSPIDFD: 6.5;
    SO_PASSRIGHTS: 6.16.
    """
    kernel.enable(sock, bool(creds), bool(pidfd), bool(label), bool(fds))


def receive(sock: socket.socket, bufsize: int, flags: int = 0, *, max_fds: int = 0) -> Message:
    """Receive a message and what comes with it.

    This calls `recvmsg(fd, ..., flags | MSG_CMSG_CLOEXEC)`, with room for
    what getsockopt(2) says is enabled. If the socket has a timeout or does
    not block, the standard library waits, so timeouts, signals and gevent
    work as usual.

    See the top of this module for what `cred` proves. It does not prove
    that the process is still alive, or that `pid` still names it.

    The kernel or this function discards descriptors beyond `max_fds`.
    Discarding one can block for hours, even on a non-blocking socket, if it
    is a lingering TCP socket. To prevent that, use `enable(fds=False)`.

    Args:
        sock: A Unix socket of the standard library, blocking or not.
        bufsize: The most bytes to receive. A longer datagram or seqpacket
            message is cut off (MSG_TRUNC). With 0, no data does not mean
            that a stream has ended.
        flags: MSG_PEEK, MSG_DONTWAIT, MSG_WAITALL, ..., as for recvmsg(2).
        max_fds: The most descriptors to accept, from 0 to 253. If more were
            attached, the rest is lost (MSG_CTRUNC).

    Returns:
        A `Message`. If it may have a pidfd or descriptors, use `with`.

    Raises:
        OSError: As `socket.recvmsg`: BlockingIOError, TimeoutError, EBADF,
            EINVAL (the stream is not connected).
            EMSGSIZE: the credentials or the label are not complete. A
            sender cannot cause that, but SO_TIMESTAMP on a datagram or
            seqpacket socket does. The message is lost, except with MSG_PEEK.
        ValueError: `bufsize`, `flags` or `max_fds` is out of range.
        MemoryError: There is no room for `bufsize` bytes.
        NoPeerError, UnsupportedError, TypeError: As `enable`.

    See unix(7), recv(2) and cmsg(3). Linux 2.2 and later.
    """
    return kernel.receive(sock, index(bufsize), index(flags), index(max_fds))


def send(
    sock: socket.socket,
    data: Data,
    *,
    cred: Cred | None = None,
    fds: Iterable[int | HasFileno] = (),
    flags: int = 0,
    address: Any = None,
) -> int:
    """Send a message, optionally with credentials and descriptors.

    This calls `sendmsg(fd, ..., flags)` through the standard library, with
    SCM_CREDENTIALS for `cred` and SCM_RIGHTS for `fds`. Without `cred`, the
    kernel adds your pid and real ids, if the receiver enabled that.

    Args:
        sock: A Unix socket of the standard library, blocking or not.
        data: A bytes-like object, or an iterable of several, which are sent
            as one message.
        cred: The ids to claim. `uid` and `gid` may each be your real,
            effective or saved id, and `pid` your own, or None for the same.
            Root may use any ids and the pid of any process.
        fds: The descriptors to attach, at most 253: ints, or objects with
            `fileno()`. The receiver gets copies.
        flags: MSG_DONTWAIT, MSG_EOR, ..., as for sendmsg(2).
        address: The destination, if the socket is not connected.

    Returns:
        The number of bytes that were sent. On a stream it may be less than
        you gave: send the rest with `cred` but without `fds`, which have
        gone.

    Raises:
        OSError: As `socket.sendmsg`.
            With `cred`: EPERM: the ids or the pid are not yours, and you are
            not root. ESRCH: no process has this pid. EINVAL: an id has no
            mapping.
            With `fds`: EBADF: one is not open. EPERM: the receiver refuses
            descriptors. ETOOMANYREFS: too many are in flight.
        ValueError: `cred` or `fds` without data on a stream socket, where
            they would not arrive. Too many descriptors, or a number that
            none can have. A memoryview that is not contiguous. `flags` out
            of range.
        NoPeerError, UnsupportedError, TypeError: As `enable`.

    See unix(7), send(2) and credentials(7). Linux 2.2 and later.
    """
    check_cred(cred)
    attached: list[Any] = []  # keeps the objects, and so their descriptors, until they are sent
    return kernel.send(sock, _buffers(data), cred, _descriptors(fds, attached), index(flags), address)


def _buffers(data: Data) -> list[Buffer]:
    try:
        memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        if isinstance(data, str):  # an empty one would be an empty list of buffers
            raise
        # sendmsg(2) refuses more buffers, and some iterables never end.
        return list(islice(data, _IOV_MAX + 1))  # type: ignore[arg-type]
    return [data]  # type: ignore[list-item]


def _descriptors(fds: Iterable[Any], attached: list[Any]) -> Iterator[int]:
    if isinstance(fds, bytes | bytearray | memoryview):  # iterables of ints, but hardly of descriptors
        raise TypeError(f"fds must be an iterable of descriptors, not {fds!r}")
    for each in fds:
        attached.append(each)
        number = as_int(each.fileno() if hasattr(each, "fileno") else each)
        if number is None:
            raise TypeError(f"fds must hold descriptors or objects with fileno(), not {each!r}")
        if not 0 <= number < 2**31:
            raise ValueError(f"fds must hold open descriptors, and none has the number {number}: {each!r}")
        yield number
