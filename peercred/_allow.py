"""AllowList: which peers are let in."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from operator import index

from ._cred import ID_MAX, Cred
from ._descriptor import Connection, descriptor
from ._platform import kernel

TYPE_CHECKING = False  # type checkers take it for True; importing typing is slow
if TYPE_CHECKING:
    from typing import Any

# Short names, because help() shows them.
Ids = Iterable[int | str]
Gids = Iterable[int]


class AllowList:
    """The users and groups that are let in. An immutable value.

        allowed = peercred.AllowList(uids={0, "alice"}, gids={"docker"})
        cred = allowed.require(conn)  # a Cred, or an OSError: refuse

    Make it once, when the server starts, so that a bad list fails there
    and not at the first client. Only what you list is admitted: an empty
    list refuses everyone, and root is no exception.

    Names are looked up when the list is made (getpwnam(3), getgrnam(3)),
    never later. The attributes `uids` and `gids` hold the numbers: as the
    range that you gave, however long it is, or else as a frozenset.

    The numbers count in the user namespace where the list is made. If the
    process enters another one, make the list there. A copied or unpickled
    list is checked again, like a new one.

    The overflow ids (/proc/sys/kernel/overflowuid and overflowgid, usually
    65534) never match, not even in a range, and you cannot list them. All
    users without a mapping in the reader's user namespace read as that
    number. If the server itself had no mapping, `uids={os.geteuid()}`
    would let them all in.

    Args:
        uids: The effective user ids to let in, as ints or user names: any
            iterable.
        gids: The group ids to let in, as ints or group names: any
            iterable. A peer matches by its primary group and by each of
            its supplementary groups.

    Raises:
        TypeError: Not an iterable of ints and names.
        ValueError: An unknown name, a number in quotes, an overflow id, or
            a number that is not from 0 to 4294967294.
        UnsupportedError: ENOTSUP: this is not Linux.
        OSError: ENOENT: /proc/sys/kernel is missing, so the overflow ids
            are not known.

    References:
        user_namespaces(7), proc_sys_kernel(5).
    """

    __slots__ = ("_overflow_gid", "_overflow_uid", "gids", "uids")

    uids: frozenset[int] | range
    gids: frozenset[int] | range
    _overflow_uid: int
    _overflow_gid: int

    def __init__(self, uids: Ids = (), gids: Ids = ()) -> None:
        overflow_uid, overflow_gid = kernel.overflow_ids()
        set_ = object.__setattr__
        set_(self, "uids", _ids("user", uids, overflow_uid))
        set_(self, "gids", _ids("group", gids, overflow_gid))
        set_(self, "_overflow_uid", overflow_uid)
        set_(self, "_overflow_gid", overflow_gid)

    def require(self, conn: Connection) -> Cred:
        """Return the peer of a connection if it is on the list, or raise.

        This asks what `read` asks and, if the list has `gids`, also what
        `read_groups` asks. Both answers are about the same connection, even
        if another thread replaces the descriptor meanwhile. See `read` for
        what the answer proves.

        Args:
            conn: As for `read`.

        Returns:
            The peer's `Cred`.

        Raises:
            PermissionError: EACCES: the peer is not on the list. The
                message says who it is.
            OSError, TypeError, ValueError: As for `read`, and as for
                `read_groups` if only a group could let the peer in.
            OSError: EMFILE, ENFILE: the table of descriptors is full. For
                a list with `gids`, the descriptor is duplicated for a
                moment. (If another thread closes the original meanwhile,
                closing the duplicate can block as close(2) can.)
        """
        if self.gids:
            cred, groups, groups_error = kernel.read_with_groups(descriptor(conn))
        else:
            cred, groups, groups_error = kernel.read(descriptor(conn)), (), None
        if self._permits(cred, groups):
            return cred
        raise groups_error or PermissionError(
            errno.EACCES, f"not on the allow-list: pid {cred.pid}, uid {cred.uid}, gid {cred.gid}"
        )

    def permits(self, cred: Cred | None, groups: Gids = ()) -> bool:
        """Is this process on the list?

        This is the decision of `require` without the connection. Use it
        for the `cred` of a message, and in tests of your own server.

        Args:
            cred: The process. None is never on the list: that is the `cred`
                of a message whose sender the kernel does not vouch for.
            groups: Its supplementary groups. A message has none.

        Returns:
            True if `cred.uid` is in `uids`, or if `cred.gid` or one of
            `groups` is in `gids`. An overflow id never matches.

        Raises:
            TypeError: `cred` is neither a `Cred` nor None, or `groups` is
                not an iterable of ints.
        """
        if cred is None:
            return False
        if not issubclass(type(cred), Cred):  # __class__ can lie, as a mock's does
            raise TypeError(f"cred must be a peercred.Cred or None, not {cred!r}")
        _check_iterable("groups", groups, "ints")
        return self._permits(cred, map(index, groups))

    def _permits(self, cred: Cred, groups: Gids) -> bool:
        if cred.uid in self.uids and cred.uid != self._overflow_uid:
            return True
        gids, overflow = self.gids, self._overflow_gid
        if cred.gid in gids and cred.gid != overflow:
            return True
        for gid in groups:  # noqa: SIM110  # a generator takes longer
            if gid in gids and gid != overflow:
                return True
        return False

    def __repr__(self) -> str:
        return f"AllowList(uids={_shown(self.uids)}, gids={_shown(self.gids)})"

    def __eq__(self, other: object) -> bool:
        return (self.uids, self.gids) == (other.uids, other.gids) if isinstance(other, AllowList) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.uids, self.gids))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an AllowList is immutable: make a new one instead of changing {name!r}")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.uids, self.gids)


def _ids(kind: str, ids: Ids, overflow: int) -> frozenset[int] | range:
    _check_iterable(f"{kind[0]}ids", ids, "ints and names")
    if type(ids) is range:
        checked: Iterable[int] = (ids[0], ids[-1]) if ids else ()
        result: frozenset[int] | range = ids
    else:
        checked = result = frozenset(_id(kind, id_) for id_ in ids)
        if overflow in result:
            raise ValueError(
                f"{overflow} is the overflow {kind} id, which all {kind}s without a mapping in this user namespace "
                f"share, so it cannot be let in: give the service a {kind} of its own"
            )
    for id_ in checked:
        if not 0 <= id_ <= ID_MAX:
            raise ValueError(f"a {kind} id must be from 0 to {ID_MAX}, not {id_}")
    return result


def _id(kind: str, id_: Any) -> int:
    if issubclass(type(id_), str):
        if str.isdecimal(id_):
            raise ValueError(f"{id_!r} is a {kind} id in quotes: remove the quotes")
        try:
            return kernel.look_up(kind, id_)
        except (KeyError, ValueError):
            raise ValueError(f"there is no {kind} named {id_!r}") from None
    if issubclass(type(id_), int) and not isinstance(id_, bool):
        return int.__index__(id_)
    raise TypeError(f"a {kind} must be an int or a name, not {id_!r}")


def _check_iterable(name: str, ids: object, what: str) -> None:
    if isinstance(ids, str | bytes | bytearray | memoryview) or not hasattr(ids, "__iter__"):
        raise TypeError(f"{name} must be an iterable of {what}, not {ids!r}")


def _shown(ids: frozenset[int] | range) -> str:
    if isinstance(ids, range):
        return repr(ids)
    return f"{{{', '.join(map(str, sorted(ids)))}}}" if ids else "()"
