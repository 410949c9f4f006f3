"""The only module that touches the compiled one, and the only place where an errno becomes an exception."""

import os
from errno import EAFNOSUPPORT, EINVAL, ENODATA, ENOPROTOOPT, ENOTCONN, EPROTO, ERANGE, ESRCH

from ._cred import Cred, Draft
from ._errors import NoPeerError, UnsupportedError
from ._libc import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_GID_ARRAY = ffi.typeof("gid_t[]")
_CHAR_ARRAY = ffi.typeof("char[]")
_SIZES = 256, 8192, 2**18  # in bytes; the last holds the 65,536 groups that there can be

# Bound once: an attribute of lib or ffi costs 50 ns each time.
_ucred, _peer_option, _unpack = lib.peercred, lib.peer_option, ffi.unpack
_SO_PEERGROUPS = lib.SO_PEERGROUPS
_new = ffi.new_allocator(should_clear_after_alloc=False)  # peer_option() fills it


def peercred(fd: int) -> Cred:
    """SO_PEERCRED."""
    ucred = _ucred(fd)
    pid = ucred.pid
    if pid < 0:
        raise _error(fd, pid, "SO_PEERCRED")
    draft = Draft()
    draft.pid = pid or None
    draft.uid = ucred.uid
    draft.gid = ucred.gid
    draft.__class__ = Cred  # type: ignore[assignment]
    return draft  # type: ignore[return-value]


def peergroups(fd: int) -> tuple[int, ...]:
    """SO_PEERGROUPS."""
    return tuple(_array(fd, _SO_PEERGROUPS, "SO_PEERGROUPS", _GID_ARRAY, 4))


def peersec(fd: int) -> bytes:
    """SO_PEERSEC."""
    peercred(fd)  # first: SELinux has a label for a socket without a peer as well
    label: bytes = _array(fd, lib.SO_PEERSEC, "SO_PEERSEC", _CHAR_ARRAY, 1).removesuffix(b"\0")
    if not label:
        raise OSError(ENODATA, "the security module has recorded an empty label")
    return label


def peerpidfd(fd: int) -> int:
    """SO_PEERPIDFD."""
    pidfd = ffi.new("int *", -1)
    try:
        # With a smaller size the descriptor is made, and its number cut off.
        length = _peer_option(fd, lib.SO_PEERPIDFD, pidfd, 4)
        if length == -EINVAL:
            raise ProcessLookupError(
                ESRCH, "the peer is gone, and this kernel cannot name it any more (Linux 6.16 can)"
            )
        if length != 4:
            raise _error(fd, length, "SO_PEERPIDFD")
        return int(pidfd[0])
    except BaseException:  # a signal handler's, too; and a listening socket has opened one of its own process
        if pidfd[0] >= 0:
            os.close(pidfd[0])
        raise


def _array(fd: int, option: int, name: str, array: "Any", itemsize: int) -> "Any":
    """An option of any length: what cffi unpacks from an array of this type."""
    for size in _SIZES:
        values = _new(array, size // itemsize)
        length = _peer_option(fd, option, values, size)
        if length >= 0 and length % itemsize == 0:
            return _unpack(values, length // itemsize)
        if length != -ERANGE:
            break
    raise _error(fd, length, name)


def _error(fd: int, result: int, option: str) -> OSError:
    """What to raise for a negative errno; or for a length, if it is one that cannot be."""
    cred = _ucred(fd)
    if cred.pid < 0:  # what read() refuses, its sisters refuse for the same reason
        result, option = cred.pid, "SO_PEERCRED"
    errno = -result if result < 0 else EPROTO
    if errno == ENOTCONN:
        return _no_peer(fd)
    if errno == ENOPROTOOPT:
        return UnsupportedError(errno, f"the running kernel, or its security module, does not support {option}")
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
