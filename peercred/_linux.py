"""The Linux back end of `_read` and `_allow`.

Only this module and `_linux_messages` use the compiled module, and only there
does an errno become an exception.
"""

from __future__ import annotations

import os
from errno import (
    EAFNOSUPPORT,
    EBADF,
    EINVAL,
    ENODATA,
    ENOPROTOOPT,
    ENOTCONN,
    ENOTSOCK,
    ERANGE,
    ESRCH,
)

from ._cred import Cred, cred_of
from ._errors import NoPeerError, UnsupportedError
from ._libc import ffi, lib

# What is needed most, bound once: looking up an attribute of lib takes 50 ns.
_peercred, _peercred_and_groups, _unpack = lib.peercred, lib.peercred_and_groups, ffi.unpack
_allocate = ffi.new_allocator(should_clear_after_alloc=False)  # C fills it
_gids, _chars = ffi.typeof("gid_t[]"), ffi.typeof("char[]")

# What is asked beside the option: see _libc.c.
_OTHER_CALLS = {
    lib.IN_GETPEERNAME: "getpeername(2)",
    lib.IN_DUPFD: "F_DUPFD_CLOEXEC",
    lib.IN_SO_TYPE: "SO_TYPE",
    lib.IN_SO_DOMAIN: "SO_DOMAIN",
}
_FAMILIES = {
    getattr(lib, name): name for name in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_BLUETOOTH", "AF_VSOCK")
}

_FEW_GROUPS = 64  # enough for nearly every process, as GROUPS_MAX is for all
# Enough for nearly all labels, and for all: AppArmor's can be longer than those
# that come with messages (LABEL_MAX).
_SHORT_LABEL, _LONG_LABEL = 256, 2**20


def read(fd: int) -> Cred:
    """SO_PEERCRED."""
    ucred = _peercred(fd)
    cred = cred_of(ucred)
    if cred is None:
        raise error_for(fd, ucred.pid, "SO_PEERCRED")
    return cred


def read_groups(fd: int) -> tuple[int, ...]:
    """SO_PEERGROUPS."""
    gids = _allocate(_gids, _FEW_GROUPS)
    count = lib.peergroups(fd, gids, _FEW_GROUPS)
    if count == -ERANGE:
        gids = _allocate(_gids, lib.GROUPS_MAX)
        count = lib.peergroups(fd, gids, lib.GROUPS_MAX)
    if count < 0:
        raise error_for(fd, count, "SO_PEERGROUPS")
    return tuple(_unpack(gids, count))


def read_with_groups(fd: int) -> tuple[Cred, tuple[int, ...], OSError | None]:
    """SO_PEERCRED and SO_PEERGROUPS of one peer.

    If the groups cannot be read, they are empty and the error says why.
    """
    gids = _allocate(_gids, _FEW_GROUPS)
    peer = _peercred_and_groups(fd, gids, _FEW_GROUPS)
    if peer.groups == -ERANGE:
        gids = _allocate(_gids, lib.GROUPS_MAX)
        peer = _peercred_and_groups(fd, gids, lib.GROUPS_MAX)
    cred, count = cred_of(peer), peer.groups
    if cred is None:
        raise error_for(fd, peer.pid, "SO_PEERCRED")
    if count < 0:
        return cred, (), error_for(fd, count, "SO_PEERGROUPS")
    return cred, tuple(_unpack(gids, count)), None


def read_label(fd: int) -> bytes:
    """SO_PEERSEC."""
    chars = _allocate(_chars, _SHORT_LABEL)
    length = lib.peersec(fd, chars, _SHORT_LABEL)
    if length == -ERANGE:
        chars = _allocate(_chars, _LONG_LABEL)
        length = lib.peersec(fd, chars, _LONG_LABEL)
    if length < 0:
        raise error_for(fd, length, "SO_PEERSEC")
    label: bytes = _unpack(chars, length).removesuffix(b"\0")
    if not label:
        raise OSError(ENODATA, "the security module has recorded an empty label")
    return label


def open_pidfd(fd: int, opened: list[int]) -> None:
    """SO_PEERPIDFD. The new descriptor is put into the list, which owns it."""
    # map() puts it into the list before a signal handler can raise.
    opened.extend(map(lib.peerpidfd, (fd,)))
    if opened[0] < 0:
        result = opened.pop()
        if result == -EINVAL:
            raise ProcessLookupError(
                ESRCH, "the peer is gone, and this kernel can no longer identify it (Linux 6.16 can)"
            )
        raise error_for(fd, result, "SO_PEERPIDFD")


def overflow_ids() -> tuple[int, int]:
    """The ids that stand for users and groups without a mapping."""
    numbers = []
    for name in ("overflowuid", "overflowgid"):
        with open(f"/proc/sys/kernel/{name}", "rb") as file:
            numbers.append(int(file.read()))
    return numbers[0], numbers[1]


def error_for(fd: int, result: int, call: str) -> OSError:
    """The exception for a negative result of C.

    The call has already failed. These queries only choose the words.
    """
    errno = -result & lib.ERRNO_MAX
    call = _OTHER_CALLS.get(-result - errno, call)
    family = lib.int_option(fd, lib.SO_DOMAIN)
    if errno == EAFNOSUPPORT or (family >= 0 and family != lib.AF_UNIX):
        what = _FAMILIES.get(family, f"address family {family}" if family >= 0 else "not one")
        return NoPeerError(EAFNOSUPPORT, f"only Unix sockets have peer credentials, and descriptor {fd} is {what}")
    if errno == ENOTCONN:
        return NoPeerError(ENOTCONN, f"descriptor {fd} is {_why_no_peer(fd)}")
    if errno == ENOPROTOOPT:
        return UnsupportedError(ENOPROTOOPT, f"the running kernel, or its security module, does not support {call}")
    if errno in (EBADF, ENOTSOCK):
        return OSError(errno, f"{os.strerror(errno)}: descriptor {fd} must be a Unix socket")
    return OSError(errno, f"{os.strerror(errno)}: {call} of descriptor {fd}")


def _why_no_peer(fd: int) -> str:
    if lib.int_option(fd, lib.SO_ACCEPTCONN) == 1:
        return "a listening socket: pass the connection that accept() returns"
    if lib.int_option(fd, lib.SO_TYPE) == lib.SOCK_DGRAM:
        return (
            "a datagram socket without a fixed peer: use peercred.messages, because here credentials "
            "come with each message"
        )
    return "not connected: connect it, or pass what accept() returns"
