"""What the kernel recorded of a connection's peer: one function per socket option."""

import sys

from ._cred import Cred
from ._descriptor import Connection, descriptor

# By name, and never by `except ImportError`: on Linux a broken build must be loud.
if sys.platform == "linux":
    from . import _linux

    kernel = _linux
else:
    from . import _unsupported

    kernel = _unsupported

__all__ = ["kernel", "open_pidfd", "read", "read_groups", "read_label"]


def read(conn: Connection) -> Cred:
    """Who is at the other end of a connected Unix socket?

    `getsockopt(fd, SOL_SOCKET, SO_PEERCRED, ...)`, after which SO_ACCEPTCONN rules out a listening socket,
    which would answer with its own ids.

    What it proves: a process with these *effective* ids called connect(2), listen(2) or socketpair(2) for the
    other end; of an accepted connection, the client that connected. The kernel took them down at that moment and
    never changes them; the client cannot forge them. On a client's own end they are of the last caller of listen(2),
    which need not be the process that accepts, and under socket activation is pid 1.

    What it does not: who holds the other end now, for descriptors are inherited and passed on; whether the process
    still lives; that `pid` still names it, for numbers are recycled; which user it is if the id reads as
    the overflow id (65534): that is any user without a mapping in the reader's user namespace.

    Never blocks, keeps the GIL, caches nothing; safe in threads, after fork and in signal handlers.

    Args:
        conn: An int descriptor; an object with `fileno()`, such as a socket; or an object with asyncio's
            `get_extra_info("socket")`, such as a transport or a StreamWriter. Connected stream and seqpacket sockets
            have a peer, and so has every socket of a socketpair.

    Returns:
        A `Cred`: `pid`, None if the peer is in a PID namespace that the reader cannot see; effective `uid` and `gid`.

    Raises:
        NoPeerError: ENOTCONN: unconnected, listening, or a datagram socket that is not of a socketpair.
            EAFNOSUPPORT: not a Unix socket.
        UnsupportedError: ENOTSUP: this is not Linux. ENOPROTOOPT: the kernel has no SO_PEERCRED.
        OSError: EBADF: closed, or no open descriptor. ENOTSOCK: not a socket. EPROTO: the kernel's answer
            is not a `struct ucred`. (The two above are OSErrors too.)
        TypeError, ValueError: `conn` holds no descriptor, or one that no descriptor can be.

    References:
        unix(7), credentials(7), user_namespaces(7), pid_namespaces(7). Linux 2.2 and later.
    """
    return kernel.peercred(descriptor(conn))


def read_groups(conn: Connection) -> tuple[int, ...]:
    """Which supplementary groups is the process at the other end in?

    `getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, ...)`, and SO_ACCEPTCONN as in `read`.

    What it proves: the process that `read` names had these supplementary groups at that same moment. All
    of them, up to the kernel's 65,536, or an error: never a part.

    What it does not: `Cred.gid`, the primary group, is not among them unless the process has it as a supplementary one
    too. They are the *process's* groups; what NSS knows of the user (`os.getgrouplist`, `grp`, `id NAME`) may
    be more or less.

    Args:
        conn: As for `read`.

    Returns:
        Group ids in the reader's user namespace, in the kernel's order, with its duplicates; `()` if there are none.
        Each one without a mapping there reads as the overflow id (65534), which is no group.

    Raises:
        As `read`, and UnsupportedError (ENOPROTOOPT) on a kernel without SO_PEERGROUPS.

    References:
        setgroups(2), user_namespaces(7). Linux 4.13 and later.
    """
    return kernel.peergroups(descriptor(conn))


def read_label(conn: Connection) -> bytes:
    """Which security label does the process at the other end carry?

    `getsockopt(fd, SOL_SOCKET, SO_PEERSEC, ...)`, after SO_PEERCRED and SO_ACCEPTCONN as in `read`, for SELinux
    has a label for a socket without a peer as well.

    What it proves: the security module (SELinux, AppArmor, Smack) labelled the peer so when it connected. What it
    does not: what the label permits, which is for the module's policy to say.

    Args:
        conn: As for `read`.

    Returns:
        The label without the one NUL that SELinux ends it by: `b"system_u:system_r:init_t:s0"`, or AppArmor's
        `b"snap.name (enforce)"`. Bytes, for the module alone knows their encoding.

    Raises:
        As `read`; UnsupportedError (ENOPROTOOPT) where no security module labels such sockets;
        OSError (ENODATA) if the label is empty.

    References:
        unix(7), selinux(8), apparmor(7). Linux 2.6.2 and later.
    """
    return kernel.peersec(descriptor(conn))


def open_pidfd(conn: Connection) -> int:
    """Which process, beyond doubt, is at the other end?

    `getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, ...)`, and SO_ACCEPTCONN as in `read`.

    What it proves: the descriptor refers to the very process that `read` names, through exec and after its death,
    and never to a later one that was given its number. What it does not: that the process still lives (poll(2) says
    readable once it does not), or which program it runs.

    There is no fall back to `os.pidfd_open(cred.pid)` where the kernel lacks it: the pid may have been recycled between
    connect and that call, which an attacker can bring about, and the answer would name a stranger.

    Args:
        conn: As for `read`.

    Returns:
        A new, close-on-exec descriptor, the caller's to close, for `signal.pidfd_send_signal`, `select.poll`,
        `os.waitid(os.P_PIDFD, ...)` of a child, or an event loop's `add_reader`. Also of a process that has died, if
        the kernel still knows it (Linux 6.16): signals to it then fail with ESRCH.

    Raises:
        As `read`; ProcessLookupError (ESRCH) if the peer is gone and the kernel cannot refer to it any more (before
        Linux 6.16); UnsupportedError (ENOPROTOOPT) on a kernel without SO_PEERPIDFD; OSError (EMFILE, ENFILE) if
        the table of descriptors is full. The last three are three different facts: none of them means "let it in".

    References:
        pidfd_open(2), unix(7). Linux 6.5 and later.
    """
    return kernel.peerpidfd(descriptor(conn))
