"""What the kernel recorded of a connection's peer: one function per socket option."""

import sys

from ._cred import Cred
from ._descriptor import Connection, descriptor

# By name, and never by `except ImportError`: on Linux a broken build must be loud.
if sys.platform == "linux":
    from . import _linux as kernel
else:
    from . import _unsupported as kernel


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
