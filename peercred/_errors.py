"""The two exceptions of peercred: both are OSErrors."""


class NoPeerError(OSError):
    """The socket has no peer, so there is nobody to identify.

    The message says which kind of socket it is and what to pass instead.

    Attributes:
        errno: ENOTCONN if it is a Unix socket that is not connected, that
            listens, or that is a datagram socket connected to an address.
            EAFNOSUPPORT if it is a socket of another family, such as TCP.
    """


class UnsupportedError(OSError):
    """This system cannot answer. That is no reason to skip the check.

    Attributes:
        errno: ENOPROTOOPT if the running kernel or its security module lacks
            the socket option. ENOTSUP if the platform is not Linux.
    """
