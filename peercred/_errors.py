"""The exceptions of peercred. All are OSErrors."""

from __future__ import annotations

from errno import EACCES

from ._cred import Cred

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class NoPeerError(OSError):
    """The socket has no peer. The message says why.

    Attributes:
        errno: ENOTCONN if a Unix socket is not connected, listens, or is
            a datagram socket without a fixed peer. EAFNOSUPPORT if the
            socket is not a Unix socket.
    """

    __module__ = "peercred"


class UnsupportedError(OSError):
    """The kernel or platform cannot answer. Treat this as a refusal.

    Attributes:
        errno: ENOPROTOOPT if the running kernel or its security module
            lacks the socket option. ENOTSUP if the platform is not Linux.
    """

    __module__ = "peercred"


class NotAllowedError(PermissionError):
    """The peer is not on the AllowList. The message says who it is.

    Attributes:
        cred: The `Cred` of the refused peer.
        errno: EACCES.
    """

    __module__ = "peercred"

    cred: Cred

    def __init__(self, cred: Cred) -> None:
        super().__init__(EACCES, f"not on the allow-list: pid {cred.pid}, uid {cred.uid}, gid {cred.gid}")
        self.cred = cred

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cred,), vars(self)
