"""Who sent this message?

For datagram sockets, and for connections that may have been handed on.

    from peercred import messages  # `import peercred` does not load it

    messages.enable(sock)  # first of all: what is queued by then has no sender
    msg = messages.receive(sock, 4096)
    msg.data               # b"READY=1"
    msg.cred               # Cred(pid=2002, uid=1000, gid=1000)
    messages.send(sock, b"READY=1")

Linux knows three identities of a peer, and they may differ:

- *Effective, at connect*: `peercred.read`. These ids decided what the peer
  might do when it connected. Trust them to let a connection in. They do not say
  who writes to it later.
- *Real, at send*: `Message.cred`, if the sender gave none. It is who wrote this
  message. A set-uid-root program that user 1000 runs is 1000 here, and 0 above.
  Trust it for which user's and which process's message it is.
- *Claimed*: `Message.cred`, if the sender gave credentials, as `send(cred=...)`
  does. The receiver cannot tell. The kernel lets a sender choose among its
  real, effective and saved ids. Root (CAP_SETUID, CAP_SETGID, CAP_SYS_ADMIN)
  may use any id and the pid of any process, and the pidfd follows the pid. So a
  uid proves only that the sender may act as that user; trust the pid and the
  pidfd only as far as you trust root.

To let a message in or not, ask `AllowList.permits(message.cred)`: that is about
its uid and its primary group, because a message has no supplementary groups.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ._cred import Cred
from ._message import Message
from ._platform_messages import kernel

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
else:
    Buffer = bytes | bytearray | memoryview

__all__ = ["Message", "enable", "receive", "send"]

Data: TypeAlias = Buffer | Iterable[Buffer]


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def enable(
    sock: socket.socket, *, creds: bool = True, pidfd: bool = False, label: bool = False, fds: bool = True
) -> None:
    """Say what shall come with each message that arrives at this socket.

    `setsockopt(fd, SOL_SOCKET, SO_PASSCRED | SO_PASSPIDFD | SO_PASSSEC |
    SO_PASSRIGHTS, ...)`: each is turned on or off, as given.

    Call it before bind() or listen(). What was queued before has no sender, as
    a rule, and connections inherit the options from the listening socket. With
    `creds`, `pidfd` or `label` on, Linux binds an unbound socket to an abstract
    address when it connects or sends.

    Args:
        sock: A Unix socket of the standard library.
        creds: `Message.cred`.
        pidfd: `Message.pidfd`.
        label: `Message.label`.
        fds: False refuses attached descriptors at their sender, which gets
            EPERM. It is the only help against a stranger's descriptor that
            takes hours to close (see `receive`). Before Linux 6.16 it changes
            nothing: there `receive` drops or closes them. The default is True,
            because some protocols attach descriptors without need:
            `systemd-notify` does, unless called with --no-block.

    Raises:
        UnsupportedError: ENOPROTOOPT: the kernel lacks one that is to be turned
            on. ENOTSUP: this is not Linux.
        NoPeerError: EAFNOSUPPORT: not a Unix socket.
        OSError: EBADF: closed. After any error, all options are as before.
        ValueError: `label` without `creds` and `pidfd` on a stream socket,
            where the kernel gives none.
        TypeError: Not a `socket.socket`, or one with a recvmsg() of its own,
            such as `ssl.SSLSocket`.

    References:
        unix(7). SO_PASSCRED: Linux 2.2; SO_PASSSEC: 2.6.18; SO_PASSPIDFD: 6.5;
        SO_PASSRIGHTS: 6.16.
    """
    kernel.enable(sock, bool(creds), bool(pidfd), bool(label), bool(fds))


def receive(sock: socket.socket, bufsize: int, flags: int = 0, *, max_fds: int = 0) -> Message:
    """Receive a message, and what comes with it.

    `recvmsg(fd, ..., flags | MSG_CMSG_CLOEXEC)` of the standard library, so
    that timeouts, non-blocking sockets and signals are as with `socket.recv`.
    Before it, getsockopt(2) tells which options are on.

    What `cred` proves stands at the top of this module. It does not prove that
    the process still lives, or that `pid` still names it.

    Descriptors beyond `max_fds` never get in, or are closed here. To drop or
    close a stranger's descriptor can take as long as the stranger likes, on a
    non-blocking socket too: hours, for a TCP socket that lingers. Only
    `enable(fds=False)` helps against that, from Linux 6.16 on.

    Args:
        sock: A Unix socket of the standard library, blocking or not.
        bufsize: At most this many bytes. A longer datagram or seqpacket message
            is cut off (MSG_TRUNC).
        flags: MSG_PEEK, MSG_DONTWAIT, MSG_WAITALL, ..., as for recvmsg(2).
        max_fds: At most this many descriptors, from 0 to 253. If more were
            attached, the rest is lost (MSG_CTRUNC).

    Returns:
        A `Message`. Use it in a `with` statement if a pidfd or descriptors may
        be in it.

    Raises:
        OSError: As `socket.recvmsg`: BlockingIOError, TimeoutError, EBADF.
            EMSGSIZE: the credentials or the label did not arrive whole. No
            sender can bring that about, but SO_TIMESTAMP on a datagram socket
            does. A message that was taken from the queue is then lost.
            FileNotFoundError: there is no /proc, so a message without
            credentials cannot be told from one of a stranger to the PID
            namespace.
        ValueError: `max_fds` is out of range.
        NoPeerError, UnsupportedError, TypeError: As `enable`.

    References:
        unix(7), recv(2), cmsg(3). Linux 2.2 and later.
    """
    return kernel.receive(sock, bufsize, flags, max_fds)


def send(
    sock: socket.socket,
    data: Data,
    *,
    cred: Cred | None = None,
    fds: Iterable[int | HasFileno] = (),
    flags: int = 0,
    address: Any = None,
) -> int:
    """Send a message, with credentials of your choice and with descriptors.

    `sendmsg(fd, ..., flags)` of the standard library, with SCM_CREDENTIALS if
    `cred` is given, and SCM_RIGHTS if there are `fds`. Without `cred` the
    kernel adds the caller's pid and real ids, if the receiver has enabled that.

    What the kernel lets through is a claim: each of uid and gid may be your
    real, effective or saved one. Root may use any ids, and the pid of any
    process.

    Args:
        sock: A Unix socket of the standard library, blocking or not.
        data: A bytes-like object, or an iterable of several, which are sent as
            one message, as by `socket.sendmsg`.
        cred: What to claim. A pid of None means your own.
        fds: Descriptors to attach, at most 253: ints, or objects with
            `fileno()`. The receiver gets copies.
        flags: MSG_DONTWAIT, MSG_EOR, ..., as for sendmsg(2).
        address: Where to, if the socket is not connected.

    Returns:
        How many bytes were sent. On a stream socket that may be fewer than you
        gave. What is left needs `cred` again, but not `fds`, which went with
        the first byte.

    Raises:
        OSError: As `socket.sendmsg`. With `cred`, PermissionError (EPERM): not
            your own ids or pid, and you are not root; ProcessLookupError
            (ESRCH): no such process; EINVAL: an id without a mapping. With
            `fds`, EBADF: one is not open; PermissionError (EPERM): the receiver
            refuses descriptors; ETOOMANYREFS: too many are in flight. The
            message names what was sent.
        ValueError: No data on a stream socket, where nothing would arrive; more
            than 253 descriptors; a number that no descriptor can have.
        NoPeerError, UnsupportedError, TypeError: As `enable`.

    References:
        unix(7), send(2), credentials(7). Linux 2.2 and later.
    """
    if not isinstance(cred, Cred | None):
        raise TypeError(f"cred must be a peercred.Cred or None, not {cred!r}")
    return kernel.send(sock, _buffers(data), cred, _descriptors(fds), flags, address)


def _buffers(data: Data) -> list[Buffer]:
    try:
        memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        if isinstance(data, str):  # an empty one would be an empty list of buffers
            raise
        return list(data)  # type: ignore[arg-type]
    return [data]  # type: ignore[list-item]


def _descriptors(fds: Iterable[int | HasFileno]) -> tuple[int, ...]:
    if isinstance(fds, bytes | bytearray | memoryview):  # ints too, but hardly meant as descriptors
        raise TypeError(f"fds must be an iterable of descriptors, not {fds!r}")
    numbers = []
    for each in fds:
        number = each if isinstance(each, int) or not hasattr(each, "fileno") else each.fileno()
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"fds must hold descriptors or objects with fileno(), not {each!r}")
        if not 0 <= number < 2**31:
            raise ValueError(f"{number} in fds is no open descriptor: {each!r}")
        numbers.append(number)
    return tuple(numbers)
