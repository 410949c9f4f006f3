"""What the kernel recorded about a peer: one function per question."""

from __future__ import annotations

import sys

from ._cred import Cred
from ._descriptor import Connection, descriptor

TYPE_CHECKING = False
if TYPE_CHECKING or sys.platform == "linux":
    from . import _linux as kernel
else:
    from . import _unsupported as kernel


def read(conn: Connection) -> Cred:
    """Who is at the other end of a connected Unix socket?

    This calls `getsockopt(fd, SOL_SOCKET, SO_PEERCRED, ...)` and then
    getpeername(2), because a listening socket and a Bluetooth socket
    would answer with their own ids. A process's first question also makes
    a socket, to see that one without a peer has no ids.

    If you accepted the connection, the peer is the process that called
    connect(2). If you connected, it is the last process that called
    listen(2), which need not be the one that accepts: under systemd's
    socket activation it is pid 1. For a socketpair, it is the process
    that called socketpair(2).

    It proves that this process had these *effective* ids at that moment.
    The peer cannot forge or change them.

    It does not prove:

    - who holds the other end now: descriptors are inherited and passed on;
    - that the process is still alive, or that `pid` still names it;
    - which user it is, if the id is the overflow id (usually 65534): all
      users without a mapping in the reader's user namespace share it.

    A stream or seqpacket socket keeps its peer, even after a shutdown and
    after the peer has closed its end. A datagram socket has a peer only if
    socketpair(2) made it, and only until:

    - somebody calls connect(2) on it;
    - the other end gets an address, by bind(2) or, if SO_PASSCRED or
      SO_PASSPIDFD is on there, at its next send;
    - a send fails because the other end is closed.

    The call never blocks and keeps the GIL. It is safe in threads, after
    fork and in signal handlers. Do not close the descriptor in another
    thread during the call. If its number is reused, the answer may
    describe the new socket, even if that listens.

    Args:
        conn: An int descriptor; an object with `fileno()`, such as a
            socket; or an object with asyncio's `get_extra_info("socket")`,
            such as a transport or a StreamWriter.

    Raises:
        NoPeerError: ENOTCONN: the socket is not connected, listens, or is
            a datagram socket without a fixed peer. EAFNOSUPPORT: it is
            not a Unix socket.
        UnsupportedError: ENOTSUP: this is not Linux. ENOPROTOOPT: the
            kernel lacks the option, or takes whoever asks for the peer
            (gVisor before release-20251103).
        OSError: EBADF: it is closed, or was never open. ENOTSOCK: it is
            not a socket. EPROTO: the kernel's answer is malformed.
        TypeError: `conn` holds no descriptor.
        ValueError: `conn` holds a number that no descriptor can have.

    See unix(7), credentials(7), user_namespaces(7) and pid_namespaces(7).
    Linux 2.2 and later.
    """
    return kernel.read(descriptor(conn))


def read_groups(conn: Connection) -> tuple[int, ...]:
    """Which supplementary groups does the peer have?

    This calls `getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, ...)` and then
    getpeername(2).

    It proves that the process that `read` names had exactly these
    supplementary groups when the kernel recorded it. You get all of them,
    up to the kernel's limit of 65,536, or an error.

    It does not prove what the user database says (`os.getgrouplist`, `grp`,
    `id NAME`): a process may have more groups than its user, or fewer.
    The primary group is `Cred.gid`. It is listed here only if the process
    also has it as a supplementary group.

    Returns:
        Group ids in the reader's user namespace, in the kernel's order,
        with duplicates. Each group without a mapping reads as the overflow
        id, which identifies no group.

    Raises:
        OSError, TypeError, ValueError: As for `read`, which says what
            `conn` may be.

    See setgroups(2) and user_namespaces(7). Linux 4.13 and later.
    """
    return kernel.read_groups(descriptor(conn))


def read_label(conn: Connection) -> bytes:
    """Which security label does the peer's socket have?

    This calls `getsockopt(fd, SOL_SOCKET, SO_PEERSEC, ...)` and then
    getpeername(2), because SELinux also labels sockets without a peer.

    It proves that the security module (SELinux, AppArmor, Smack) gave this
    label to the process that *made* the peer's socket, when it called
    socket(2) or socketpair(2).

    It does not prove the label of the process that connected: a socket
    keeps its label when it is passed on, and when its maker changes its
    own. So `read` and `read_label` can describe two different processes.

    Returns:
        The label as bytes, because only the security module knows the
        encoding: `b"system_u:system_r:init_t:s0"` from SELinux, without
        the NUL at its end, or `b"snap.name (enforce)"` from AppArmor.

    Raises:
        OSError, TypeError, ValueError: As for `read`, which says what
            `conn` may be.
        OSError: ENODATA: the label is empty.
        UnsupportedError: ENOPROTOOPT: no security module labels this
            socket. SELinux never labels datagram sockets.

    See unix(7), selinux(8) and apparmor(7). Linux 2.6.2 and later.
    """
    return kernel.read_label(descriptor(conn))


def open_pidfd(conn: Connection) -> int:
    """Which process is the peer, beyond doubt?

    This calls `getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, ...)` and then
    getpeername(2).

    It proves that the descriptor refers to the process that `read` names.
    It never refers to a later process with the same pid.

    It does not prove that the process is alive (poll(2) reports the pidfd
    as readable once it has ended), or which program it runs.

    There is no fallback to `os.pidfd_open(cred.pid)`: an attacker may have
    had the pid reused since connect(2).

    Returns:
        A new close-on-exec descriptor, which you must close. Use it with
        `signal.pidfd_send_signal`, `select.poll` or an event loop's
        `add_reader`. From Linux 6.16 on you also get one for a process that
        is gone: signals to it fail with ESRCH.

    Raises:
        OSError, TypeError, ValueError: As for `read`, which says what
            `conn` may be.
        OSError: EMFILE, ENFILE: the table of descriptors is full.
        ProcessLookupError: ESRCH: the peer is gone, and the kernel can no
            longer refer to it (before Linux 6.16).

    See pidfd_open(2) and unix(7). Linux 6.5 and later.
    """
    owner = kernel.Owner()
    try:
        pidfd = kernel.open_pidfd(descriptor(conn), owner)
        owner.struct.released = True
        return pidfd
    except BaseException:  # a signal handler may raise as well
        owner.close()
        raise


def open_proc(conn: Connection) -> int:
    """Which program is the peer, and what else does /proc say of it?

    This opens the directory in /proc of the process that `open_pidfd`
    refers to. The kernel says which one that is: `Cred.pid` is not used.

        proc = peercred.open_proc(conn)
        os.readlink("exe", dir_fd=proc)
        os.stat("exe", dir_fd=proc)
        open(os.open("cgroup", os.O_RDONLY, dir_fd=proc))

    It proves that what you find in the directory belongs to the peer. Once
    the peer is gone, each look-up in it fails with ESRCH. It assumes that
    you trust whoever may mount over /proc.

    It does not prove:

    - which program the peer ran when it connected: a process can run
      another one at any time, and every user can run any program;
    - which file `readlink("exe")` names: it is a path in the peer's own
      mount namespace. To recognize a program, compare st_dev and st_ino of
      `stat("exe")` with those of its file;
    - that the peer is gone, if there is no `exe`: a process whose main
      thread has ended has none either. Refuse it.

    Returns:
        A new close-on-exec descriptor of the directory, which you must
        close. It shows what /proc shows to you: of other users' processes,
        without privilege, `comm`, `status` and `cgroup`, but not `exe`.

    Raises:
        OSError, TypeError, ValueError: As for `open_pidfd`.
        ProcessLookupError: ESRCH: the peer is gone.
        FileNotFoundError: ENOENT: this /proc does not show the peer: it
            belongs to another PID namespace, or hides processes (hidepid),
            or is no procfs, or there is none.

    See proc(5) and pidfd_open(2). Linux 6.5 and later.
    """
    owner = kernel.Owner()
    try:
        proc = kernel.open_proc(descriptor(conn), owner)
        owner.struct.released = True
        return proc
    except BaseException:
        owner.close()
        raise
