"""The Linux back end of `_read` and `_allow`.

Only this module and `_linux_messages` use the compiled module, and only there
does a result of C become an exception.
"""

from __future__ import annotations

import os
from errno import EAFNOSUPPORT, EBADF, EINVAL, ENODATA, ENOENT, ENOPROTOOPT, ENOTCONN, ENOTSOCK, ERANGE, ESRCH

# Only the compiled module needs it. Programs that freeze others, such as
# PyInstaller, find what Python code imports.
import _cffi_backend  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: F401

from ._cred import Cred, cred_of
from ._errors import NoPeerError, UnsupportedError

try:
    from ._libc import ffi, lib
except ModuleNotFoundError as missing:  # pragma: no cover  # a test imports a copy
    message = f"{missing}, for this Python. In a clone, run `pip install .` to compile it"
    raise ImportError(message, name=missing.name) from missing

# What is needed most, bound once: looking up an attribute of lib takes 50 ns.
_peercred, _peercred_and_groups, unpack = lib.peercred, lib.peercred_and_groups, ffi.unpack
allocate = ffi.new_allocator(should_clear_after_alloc=False)  # C fills it
_gids, chars = ffi.typeof("gid_t[]"), ffi.typeof("char[]")
_new, _gc, _close_one, _close_owned = ffi.new, ffi.gc, lib.close_one, lib.close_owned

# What C asks besides the option.
_OTHER_CALLS = {
    lib.IN_GETPEERNAME: "getpeername(2)",
    lib.IN_DUPFD: "F_DUPFD_CLOEXEC",
    lib.IN_SO_TYPE: "SO_TYPE",
    lib.IN_SO_DOMAIN: "SO_DOMAIN",
    lib.IN_SO_PASSCRED: "SO_PASSCRED",
    lib.IN_SO_PASSPIDFD: "SO_PASSPIDFD",
    lib.IN_SO_PASSSEC: "SO_PASSSEC",
    lib.IN_SO_PASSRIGHTS: "SO_PASSRIGHTS",
}

_FEW_GROUPS = 64  # enough for nearly every process, as GROUPS_MAX is for all
# Enough for nearly all labels, and for all. LABEL_MAX is not: AppArmor's labels
# of sockets can be longer than those of messages.
_SHORT_LABEL, _LONG_LABEL = 256, 2**20


class Owner:
    """Descriptors that C has opened, until they are closed or handed over.

    A signal handler may raise after any call. So:

    1. Make the Owner, which has a destructor, before C opens anything.
    2. To hand descriptors over, set `struct.released` just before `return`. A
       store is no call, so no handler runs in between. (No helper can do that
       for several functions.)
    3. Close the Owner in `except BaseException`. An exception that is kept
       keeps its frames, and so the Owner.

    Only `_guard` has the destructor. Never use it: in a reference cycle, its
    memory may be freed while Python code still uses `struct`.
    """

    __slots__ = ("_guard", "struct")

    PIDFD, FDS, STRAYS = lib.OWN_PIDFD, lib.OWN_FDS, lib.OWN_STRAYS

    def __init__(self) -> None:
        self.struct = struct = _new("struct owned *")
        self._guard = _gc(struct, _close_owned)

    def numbers(self, kind: int) -> tuple[int, ...]:
        """The descriptors of a kind."""
        return tuple(unpack(self.struct.fds[kind], self.struct.count[kind]))

    def move(self, other: Owner, kind: int) -> None:
        """Give the descriptors of a kind to another owner."""
        lib.move_owned(self.struct, other.struct, kind)

    def open_proc(self, other: Owner) -> int:
        """Open the directory in /proc of the pidfd's process, for an owner."""
        directory = lib.open_proc(self.struct, other.struct)
        if directory >= 0:
            return directory
        why = {
            ESRCH: "the process is gone",
            ENOENT: "this /proc does not show the process: it is in another PID namespace, /proc hides it (hidepid), "
            "or /proc is not mounted",
        }
        raise OSError(-directory, why.get(-directory, f"{os.strerror(-directory)}: /proc of the process"))

    def close(self, first_kind: int = PIDFD) -> None:
        """Close the descriptors of this kind and of later ones: usually all.

        Signal handlers run between two of them. Errors of close(2) are
        ignored: a stranger's file decides about them.
        """
        self.struct.released = False
        while _close_one(self.struct, first_kind):
            pass


def read(fd: int) -> Cred:
    """SO_PEERCRED."""
    ucred = _peercred(fd)
    cred = cred_of(ucred)
    if cred is None:
        raise error_for(fd, ucred.pid, "SO_PEERCRED")
    return cred


def read_groups(fd: int) -> tuple[int, ...]:
    """SO_PEERGROUPS."""
    gids = allocate(_gids, _FEW_GROUPS)
    count = lib.peergroups(fd, gids, _FEW_GROUPS)
    if count == -ERANGE:
        gids = allocate(_gids, lib.GROUPS_MAX)
        count = lib.peergroups(fd, gids, lib.GROUPS_MAX)
    if count < 0:
        raise error_for(fd, count, "SO_PEERGROUPS")
    return tuple(unpack(gids, count))


def read_with_groups(fd: int) -> tuple[Cred, tuple[int, ...], OSError | None]:
    """SO_PEERCRED and SO_PEERGROUPS of one peer, or why it has no groups."""
    gids = allocate(_gids, _FEW_GROUPS)
    peer = _peercred_and_groups(fd, gids, _FEW_GROUPS)
    if peer.groups == -ERANGE:
        gids = allocate(_gids, lib.GROUPS_MAX)
        peer = _peercred_and_groups(fd, gids, lib.GROUPS_MAX)
    cred, count = cred_of(peer.cred), peer.groups
    if cred is None:
        raise error_for(fd, peer.cred.pid, "SO_PEERCRED")
    if count < 0:
        return cred, (), error_for(fd, count, "SO_PEERGROUPS")
    return cred, tuple(unpack(gids, count)), None


def read_label(fd: int) -> bytes:
    """SO_PEERSEC."""
    buffer = allocate(chars, _SHORT_LABEL)
    length = lib.peersec(fd, buffer, _SHORT_LABEL)
    if length == -ERANGE:
        buffer = allocate(chars, _LONG_LABEL)
        length = lib.peersec(fd, buffer, _LONG_LABEL)
    if length < 0:
        raise error_for(fd, length, "SO_PEERSEC")
    label: bytes = unpack(buffer, length).removesuffix(b"\0")
    if not label:
        raise OSError(ENODATA, "the security module has recorded an empty label")
    return label


def open_pidfd(fd: int, owner: Owner) -> int:
    """SO_PEERPIDFD. The owner has the new descriptor."""
    pidfd = lib.peerpidfd(fd, owner.struct)
    if pidfd == -EINVAL:
        raise ProcessLookupError(ESRCH, "the peer is gone, and this kernel can no longer identify it (Linux 6.16 can)")
    if pidfd < 0:
        raise error_for(fd, pidfd, "SO_PEERPIDFD")
    return pidfd


def open_proc(fd: int, owner: Owner) -> int:
    """SO_PEERPIDFD, and the directory of that process in /proc."""
    open_pidfd(fd, owner)
    directory = owner.open_proc(owner)
    _close_one(owner.struct, owner.PIDFD)  # the directory is of a later kind
    return directory


def overflow_ids() -> tuple[int, int]:
    """The ids that stand for users and groups without a mapping."""
    ucred = lib.overflow_ids()
    if ucred.pid < 0:
        raise OSError(-ucred.pid, f"{os.strerror(-ucred.pid)}: cannot ask the kernel for the overflow ids")
    return ucred.uid, ucred.gid


def error_for(fd: int, result: int, call: str = "") -> OSError:
    """The exception for a negative result of C, from this call if not another.

    The call has already failed. These queries only choose the words.
    """
    errno = -result & lib.ERRNO_MAX
    call = _OTHER_CALLS.get(-result - errno, call)
    family = lib.int_option(fd, lib.SO_DOMAIN)
    if errno == EAFNOSUPPORT or (family >= 0 and family != lib.AF_UNIX):
        from socket import AddressFamily  # not at import, which is to be light

        names = {known.value: known.name for known in AddressFamily}
        what = names.get(family, f"address family {family}" if family >= 0 else "not one")
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
