"""The two errors of its own that peercred raises. Both are OSErrors: `except OSError` refuses."""


class NoPeerError(OSError):
    """The socket has no peer, so there is nobody to identify. Not a licence to let anybody in.

    `errno` is ENOTCONN for a Unix socket that is not connected, is listening, or is a datagram socket
    that socketpair(2) did not make; EAFNOSUPPORT for a socket of another family, such as TCP. The message
    says which it is and what to pass instead.
    """


class UnsupportedError(OSError):
    """The system cannot answer the question. Not a licence to skip the check.

    `errno` is ENOPROTOOPT where the running kernel or its security module lacks the socket option, and
    ENOTSUP on any platform but Linux.
    """
