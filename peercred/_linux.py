"""The only module that touches the compiled one, and the only place where an errno becomes an exception."""

import os
from errno import EAFNOSUPPORT, ENOPROTOOPT, ENOTCONN

from ._cred import Cred, Draft
from ._errors import NoPeerError, UnsupportedError
from ._libc import ffi, lib


def peercred(fd: int) -> Cred:
    """SO_PEERCRED."""
    ucred = lib.peercred(fd)
    pid = ucred.pid
    if pid < 0:
        raise _error(fd, -pid, "SO_PEERCRED")
    draft = Draft()
    draft.pid = pid or None
    draft.uid = ucred.uid
    draft.gid = ucred.gid
    draft.__class__ = Cred  # type: ignore[assignment]
    return draft  # type: ignore[return-value]


def _error(fd: int, errno: int, option: str) -> OSError:
    if errno == ENOTCONN:
        return _no_peer(fd)
    if errno == ENOPROTOOPT:
        return UnsupportedError(errno, f"the running kernel does not support {option}")
    return OSError(errno, f"{os.strerror(errno)}: descriptor {fd} should be a connected Unix socket")


def _no_peer(fd: int) -> NoPeerError:
    family = _int_option(fd, lib.SO_DOMAIN)
    if family != lib.AF_UNIX:
        return NoPeerError(
            EAFNOSUPPORT, f"only Unix sockets have peer credentials, and descriptor {fd} is of address family {family}"
        )
    if _int_option(fd, lib.SO_ACCEPTCONN):
        return NoPeerError(
            ENOTCONN, f"descriptor {fd} is a listening socket: pass the accepted connection, which accept() returns"
        )
    if _int_option(fd, lib.SO_TYPE) == lib.SOCK_DGRAM:
        return NoPeerError(
            ENOTCONN,
            f"descriptor {fd} is a datagram socket without a fixed peer: "
            "credentials come with each message instead (SO_PASSCRED)",
        )
    return NoPeerError(ENOTCONN, f"descriptor {fd} is not connected: connect it, or pass what accept() returns")


def _int_option(fd: int, option: int) -> int:
    value = ffi.new("int *")
    length = ffi.new("socklen_t *", ffi.sizeof("int"))
    if lib.getsockopt(fd, lib.SOL_SOCKET, option, value, length) != 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    return int(value[0])
