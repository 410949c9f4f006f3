"""What the kernel recorded of a peer: a function for each socket option."""

from __future__ import annotations

import os

from ._cred import Cred
from ._descriptor import Connection, descriptor
from ._platform import kernel


def read(conn: Connection) -> Cred:
    """Who is at the other end of a connected Unix socket?

    `getsockopt(fd, SOL_SOCKET, SO_PEERCRED, ...)`, then getpeername(2), which
    must name a Unix socket. Otherwise a listening socket and a Bluetooth socket
    would answer with their own ids.

    It proves that a process with these *effective* ids called connect(2),
    listen(2) or socketpair(2) for the other end. If you accepted the
    connection, that is the client that connected. The kernel recorded the ids
    at that moment and never changes them, and the client cannot forge them.
    If you connected, it is the last process that called listen(2), which need
    not be the one that accepts. Under socket activation that is pid 1.

    It does not prove:

    - who holds the other end now: descriptors are inherited and passed on;
    - that the process still lives;
    - that `pid` still names it: numbers are recycled;
    - which user it is, if the id reads as the overflow id (65534): that is
      every user without a mapping in the reader's user namespace.

    It never blocks, keeps the GIL and caches nothing. It may be called in
    threads, after fork and in signal handlers.

    A connected stream or seqpacket socket has a peer, also after it was shut
    down and after the peer has closed its end. Of datagram sockets only a
    socketpair has one, as long as both ends are as socketpair(2) made them:
    after connect(2), after a failed send to a closed other end, and after the
    other end was bound to an address (which SO_PASSCRED does by itself when it
    sends), there is no fixed peer any more.

    Args:
        conn: An int descriptor; an object with `fileno()`, such as a socket; or
            an object with asyncio's `get_extra_info("socket")`, such as a
            transport or a StreamWriter.

    Returns:
        A `Cred`: effective `uid` and `gid`, and `pid`, which is None if the
        peer is in a PID namespace that the reader cannot see.

    Raises:
        NoPeerError: ENOTCONN: the socket is not connected; or it listens; or it
            is a datagram socket without a fixed peer. EAFNOSUPPORT: it is not a
            Unix socket.
        UnsupportedError: ENOTSUP: this is not Linux. ENOPROTOOPT: the kernel
            has no SO_PEERCRED.
        OSError: EBADF: it is closed, no open descriptor, or an object whose
            `fileno()` ends in an AttributeError. ENOTSOCK: it is not a socket.
            EPROTO: the kernel's answer is not a `struct ucred`. (The two above
            are OSErrors too.)
        TypeError: `conn` is nothing that holds a descriptor.
        ValueError: `conn` holds a number that no descriptor can have.

    References:
        unix(7), getpeername(2), credentials(7), user_namespaces(7),
        pid_namespaces(7). Linux 2.2 and later.
    """
    return kernel.peercred(descriptor(conn))


def read_groups(conn: Connection) -> tuple[int, ...]:
    """Which supplementary groups is the process at the other end in?

    `getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, ...)`, then getpeername(2) as in
    `read`.

    It proves that the process that `read` names had these supplementary groups
    at the moment that `read` tells of. You get all of them, up to the kernel's
    65,536, or an error.

    It does not prove what NSS says of the user (`os.getgrouplist`, `grp`,
    `id NAME`): that may be more or less. `Cred.gid`, the primary group, is not
    among them unless the process has it as a supplementary group too.

    Args:
        conn: As for `read`.

    Returns:
        Group ids in the reader's user namespace, in the kernel's order, with
        duplicates. `()` if there are none. Each group without a mapping there
        reads as the overflow id (65534), which identifies no group.

    Raises:
        As `read`, and UnsupportedError (ENOPROTOOPT) if the kernel has no
        SO_PEERGROUPS.

    References:
        setgroups(2), user_namespaces(7). Linux 4.13 and later.
    """
    return kernel.peergroups(descriptor(conn))


def read_label(conn: Connection) -> bytes:
    """Which security label does the socket at the other end have?

    `getsockopt(fd, SOL_SOCKET, SO_PEERSEC, ...)`, then getpeername(2) as in
    `read`, because SELinux has a label for a socket without a peer as well.

    It proves that the security module (SELinux, AppArmor, Smack) gave this
    label to the process that *made* the socket, when it called socket(2) or
    socketpair(2).

    It does not prove the label of the process that connected. A socket that is
    handed on keeps its maker's label, and so does a socket whose maker changes
    its own label before it connects. `read` and `read_label` of one connection
    can therefore tell of two processes.

    Args:
        conn: As for `read`.

    Returns:
        The label, without the one NUL that SELinux ends it with:
        `b"system_u:system_r:init_t:s0"`, or `b"snap.name (enforce)"` from
        AppArmor. Bytes, because only the security module knows the encoding.

    Raises:
        As `read`; UnsupportedError (ENOPROTOOPT) if no security module labels
        such sockets (AppArmor does so on Linux 7.2, not on 6.1 and 6.12;
        SELinux never labels datagram sockets); OSError (ENODATA) if the label
        is empty.

    References:
        unix(7), selinux(8), apparmor(7). Linux 2.6.2 and later.
    """
    return kernel.peersec(descriptor(conn))


def open_pidfd(conn: Connection) -> int:
    """Which process, beyond doubt, is at the other end?

    `getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, ...)`, then getpeername(2) as in
    `read`.

    It proves that the descriptor refers to the process that `read` names:
    through exec, after its death, and never to a later process with the same
    number.

    It does not prove that the process still lives (once it has ended, poll(2)
    says readable), or which program it runs.

    There is no fallback to `os.pidfd_open(cred.pid)` if the kernel lacks the
    option. The number may have been recycled since connect(2), which an
    attacker can bring about, and then the answer would name a stranger.

    Args:
        conn: As for `read`.

    Returns:
        A new, close-on-exec descriptor, which is yours to close. It is for
        `signal.pidfd_send_signal`, `select.poll`, `os.waitid(os.P_PIDFD, ...)`
        of a child, or an event loop's `add_reader`. From Linux 6.16 on you get
        one of a process that is gone, too: to signal it fails with ESRCH.

    Raises:
        As `read`; ProcessLookupError (ESRCH) if the peer is gone and the kernel
        can no longer refer to it (before Linux 6.16); UnsupportedError
        (ENOPROTOOPT) if the kernel has no SO_PEERPIDFD; OSError (EMFILE,
        ENFILE) if the table of descriptors is full.

    References:
        pidfd_open(2), unix(7). Linux 6.5 and later.
    """
    opened: list[int] = []
    try:
        kernel.peerpidfd(descriptor(conn), opened)
        return opened[0]
    except BaseException:  # also what a signal handler raises
        for pidfd in opened:
            if pidfd >= 0:  # not a negative errno
                os.close(pidfd)
        raise
