"""The only module that touches the compiled one, and the only place where an errno becomes an exception."""

import os
from errno import (
    EAFNOSUPPORT,
    EBADF,
    EINVAL,
    EMSGSIZE,
    ENODATA,
    ENOPROTOOPT,
    ENOTCONN,
    ENOTSOCK,
    EPERM,
    EPROTO,
    ERANGE,
    ESRCH,
)

from ._cred import Cred, Draft
from ._errors import NoPeerError, UnsupportedError
from ._libc import ffi, lib

# An answer of any length: a buffer that nearly always suffices; for the rest, one for the 65,536 groups that there
# can be, and for a label of a size that no security module comes near.
_GIDS, _ALL_GIDS = ffi.typeof("gid_t[64]"), ffi.typeof("gid_t[65536]")
_CHARS, _MANY_CHARS = ffi.typeof("char[256]"), ffi.typeof("char[1048576]")
_new = ffi.new_allocator(should_clear_after_alloc=False)  # peer_option() fills it

# Bound once: an attribute of lib or ffi costs 50 ns each time.
_ucred, _peer_option, _unpack = lib.peercred, lib.peer_option, ffi.unpack
_SO_PEERGROUPS = lib.SO_PEERGROUPS
_passing, _unpack_ucred, _UCRED_SIZE = lib.passing, lib.unpack_ucred, ffi.sizeof("struct ucred")

# What messages.py has to know of a control message, each number as this architecture has it.
MSG_CMSG_CLOEXEC, MSG_CTRUNC, LABEL_MAX = lib.MSG_CMSG_CLOEXEC, lib.MSG_CTRUNC, lib.LABEL_MAX
SCM_CREDENTIALS, SCM_PIDFD, SCM_SECURITY = lib.SCM_CREDENTIALS, lib.SCM_PIDFD, lib.SCM_SECURITY
SOL_SOCKET, SCM_RIGHTS = lib.SOL_SOCKET, lib.SCM_RIGHTS

# The bits of passing(), as build_ffi.py has them; and the room that a control buffer needs for each set of them.
CREDS, PIDFD, LABEL = 1, 2, 4
_PASS = (
    (CREDS, lib.SO_PASSCRED, "SO_PASSCRED", lib.CREDS_ROOM),
    (PIDFD, lib.SO_PASSPIDFD, "SO_PASSPIDFD", lib.PIDFD_ROOM),
    (LABEL, lib.SO_PASSSEC, "SO_PASSSEC", lib.LABEL_ROOM),
)
ROOM = tuple(sum(room for bit, _, _, room in _PASS if mask & bit) for mask in range(8))


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
    gids = _new(_GIDS)
    length = _peer_option(fd, _SO_PEERGROUPS, gids, 256)
    if length == -ERANGE:
        gids = _new(_ALL_GIDS)
        length = _peer_option(fd, _SO_PEERGROUPS, gids, 262144)
    if length < 0 or length % 4:
        raise _error(fd, length, "SO_PEERGROUPS")
    return tuple(_unpack(gids, length // 4))


def peersec(fd: int) -> bytes:
    """SO_PEERSEC."""
    peercred(fd)  # first: SELinux has a label for a socket without a peer as well
    chars = _new(_CHARS)
    length = _peer_option(fd, lib.SO_PEERSEC, chars, 256)
    if length == -ERANGE:
        chars = _new(_MANY_CHARS)
        length = _peer_option(fd, lib.SO_PEERSEC, chars, 1048576)
    if length < 0:
        raise _error(fd, length, "SO_PEERSEC")
    label: bytes = _unpack(chars, length).removesuffix(b"\0")
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
        if length != 4 or pidfd[0] < 0:
            raise _error(fd, length, "SO_PEERPIDFD")
        return int(pidfd[0])
    except BaseException:  # a signal handler's, too; and a listening socket has opened one of its own process
        if pidfd[0] >= 0:
            os.close(pidfd[0])
        raise


def overflow_ids() -> tuple[int, int]:
    """The uid and the gid that ids without a mapping in the reader's user namespace read as."""
    numbers = []
    for name in ("overflowuid", "overflowgid"):
        with open(f"/proc/sys/kernel/{name}", "rb") as file:
            numbers.append(int(file.read()))
    return numbers[0], numbers[1]


def passing(fd: int) -> int:
    """SO_PASSCRED, SO_PASSPIDFD and SO_PASSSEC: the bits of those that are on."""
    mask = _passing(fd)
    if mask < 0:
        raise _not_unix(fd, -mask)
    return mask


def set_passing(fd: int, wanted: int) -> None:
    """SO_PASSCRED, SO_PASSPIDFD and SO_PASSSEC: all as wanted, or all as they were."""
    before = passing(fd)
    try:
        _set_passing(fd, wanted)
    except BaseException:  # a signal handler's, too
        _set_passing(fd, before)
        raise


def _set_passing(fd: int, wanted: int) -> None:
    for bit, option, name, _ in _PASS:
        if (passing(fd) ^ wanted) & bit:
            on = ffi.new("int *", int(wanted & bit != 0))
            if lib.setsockopt(fd, lib.SOL_SOCKET, option, on, ffi.sizeof("int")) != 0:
                errno = ffi.errno
                raise _unsupported(name) if errno == ENOPROTOOPT else OSError(errno, f"{os.strerror(errno)}: {name}")


def is_stream(fd: int) -> bool:
    """SO_TYPE, of a Unix socket."""
    passing(fd)
    return _int_option(fd, lib.SO_TYPE) == lib.SOCK_STREAM


def unpack_cred(payload: bytes) -> Cred | None:
    """SCM_CREDENTIALS as received; None for ids of -1, which nobody has."""
    if len(payload) != _UCRED_SIZE:
        raise cut_off()
    ucred = _unpack_ucred(payload)
    draft = Draft()
    draft.pid = ucred.pid or None
    draft.uid = uid = ucred.uid
    draft.gid = gid = ucred.gid
    if uid == 4294967295 or gid == 4294967295:
        return None
    draft.__class__ = Cred  # type: ignore[assignment]
    return draft  # type: ignore[return-value]


def pack_cred(cred: Cred) -> bytes:
    """SCM_CREDENTIALS to be sent."""
    ucred = ffi.new("struct ucred *", {"pid": cred.pid, "uid": cred.uid, "gid": cred.gid})
    return bytes(ffi.buffer(ucred))


def cut_off() -> OSError:
    """What to raise where control data that vouches for the sender has not arrived whole."""
    return OSError(
        EMSGSIZE,
        "the kernel has cut the message's credentials or label off, for want of room: "
        "are other control messages on, such as SO_TIMESTAMP, or did the options change meanwhile?",
    )


def no_pidfd(payload: int | None) -> OSError:
    """Why there is no pidfd: the payload of SCM_PIDFD, a negative errno; or None, where others took its room."""
    if payload is None:
        return OSError(EMSGSIZE, "descriptors that the sender has added took the pidfd's room")
    if payload == -EINVAL:
        return ProcessLookupError(ESRCH, "the sender is gone, and this kernel cannot name it any more")
    return OSError(-payload, f"{os.strerror(-payload)}: the kernel could not open a pidfd of the sender")


def refuse_claim(error: OSError, cred: Cred) -> None:
    """Raise what names the claim, if it is that which made a sendmsg with SCM_CREDENTIALS fail."""
    if error.errno in (EPERM, ESRCH, EINVAL):
        raise OSError(error.errno, f"{error.strerror}: sending as {cred}") from error


def _error(fd: int, result: int, option: str) -> OSError:
    """What to raise for a negative errno; or for a length, if it is one that cannot be."""
    cred = _ucred(fd)
    if cred.pid < 0:  # what read() refuses, its sisters refuse for the same reason
        result, option = cred.pid, "SO_PEERCRED"
    errno = -result if result < 0 else EPROTO
    if errno == ENOTCONN:
        return _no_peer(fd)
    if errno == ENOPROTOOPT:
        return _unsupported(option)
    if errno in (EBADF, ENOTSOCK):
        return OSError(errno, f"{os.strerror(errno)}: descriptor {fd} should be a connected Unix socket")
    return OSError(errno, f"{os.strerror(errno)}: {option} of descriptor {fd}")


def _unsupported(option: str) -> UnsupportedError:
    return UnsupportedError(ENOPROTOOPT, f"the running kernel, or its security module, does not support {option}")


def _not_unix(fd: int, errno: int) -> OSError:
    if errno == EAFNOSUPPORT:
        return _no_peer(fd)
    return OSError(errno, f"{os.strerror(errno)}: descriptor {fd} should be a Unix socket")


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
            "credentials come with each message instead, which peercred.messages receives",
        )
    return NoPeerError(ENOTCONN, f"descriptor {fd} is not connected: connect it, or pass what accept() returns")


def _int_option(fd: int, option: int) -> int:
    value = ffi.new("int *")
    length = ffi.new("socklen_t *", ffi.sizeof("int"))
    if lib.getsockopt(fd, lib.SOL_SOCKET, option, value, length) != 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    return int(value[0])
