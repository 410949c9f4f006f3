"""The two exceptions of peercred. Both are OSErrors."""


class NoPeerError(OSError):
    """The socket has no peer, so there is nobody to identify.

    The message says what kind of socket it is and, if it is a Unix socket,
    what to use instead.

    Attributes:
        errno: ENOTCONN if a Unix socket is not connected, listens, or is
            a datagram socket without a fixed peer. EAFNOSUPPORT if the
            socket is not a Unix socket.
    """


class UnsupportedError(OSError):
    """This system cannot answer the question, so refuse.

    Attributes:
        errno: ENOPROTOOPT if the running kernel or its security module
            lacks the socket option. ENOTSUP if the platform is not Linux.
    """
