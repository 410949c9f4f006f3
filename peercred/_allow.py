"""AllowList: which peers are let in."""

# No `from __future__ import annotations` here: see _cred.py.
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from ._cred import Cred, check_cred, checked
from ._descriptor import Connection, descriptor
from ._errors import NotAllowedError

TYPE_CHECKING = False  # type checkers take it for True
if TYPE_CHECKING:
    from typing import Any, TypeGuard
else:  # importing typing is slow: at run time, TypeGuard[Cred] is bool
    TypeGuard = {Cred: bool}

if TYPE_CHECKING or sys.platform == "linux":
    from . import _linux as kernel
else:
    from . import _unsupported as kernel

# Quoted in signatures, so that help() shows these names and not what they stand
# for.
IdsOrNames = Iterable[int | str]
Ids = Iterable[int]


@dataclass(frozen=True, init=False, repr=False)
class AllowList:
    """The users and groups that are let in. An immutable value.

        allowed = peercred.AllowList(uids={0, "alice"}, gids={"docker"})
        cred = allowed.require(conn)  # a Cred, or an OSError: refuse

    Make it once, when the server starts, so that a bad list fails there.
    Names are looked up at that moment (getpwnam(3), getgrnam(3)) and never
    later. Only what you list is admitted: an empty list refuses everyone,
    and root is no exception.

    The numbers count in the user namespace where the list is made. If the
    process enters another one, make the list there. A copied or unpickled
    list is checked again, like a new one.

    The overflow ids (usually 65534) never match, not even in a range, and
    you cannot list them: every user without a mapping in the reader's user
    namespace reads as that number. If the server itself had no mapping,
    `uids={os.geteuid()}` would let them all in.

    Args:
        uids: The effective user ids to let in: an iterable of ints and user
            names.
        gids: The group ids to let in: an iterable of ints and group names.
            A peer matches by its primary group and by each of its
            supplementary groups.

    Attributes:
        uids, gids: The numbers: the `range` you gave, or a frozenset.

    Raises:
        TypeError: Not an iterable of ints and names.
        ValueError: An unknown name, a number in quotes, an overflow id, or
            a number that is not from 0 to 4294967294.
        UnsupportedError: ENOTSUP: this is not Linux.
        OSError: EMFILE, ENFILE: the table of descriptors is full.
            Asking the kernel for the overflow ids takes two.

    See user_namespaces(7) and proc_sys_kernel(5).
    """

    __slots__ = ("_overflow_gid", "_overflow_uid", "gids", "uids")

    uids: frozenset[int] | range
    gids: frozenset[int] | range
    if TYPE_CHECKING:  # they are no fields
        _overflow_uid: int
        _overflow_gid: int

    __module__ = "peercred"

    def __init__(self, uids: "IdsOrNames" = (), gids: "IdsOrNames" = ()) -> None:
        overflow_uid, overflow_gid = kernel.overflow_ids()
        put = object.__setattr__
        put(self, "uids", _ids("user", uids, overflow_uid))
        put(self, "gids", _ids("group", gids, overflow_gid))
        put(self, "_overflow_uid", overflow_uid)
        put(self, "_overflow_gid", overflow_gid)

    def require(self, conn: "Connection") -> Cred:
        """Return the peer of a connection if it is on the list, or raise.

        This asks what `read` asks and, if the list has `gids`, also what
        `read_groups` asks. Both answers are about one connection, even if
        another thread replaces the descriptor meanwhile: for a list with
        `gids`, a duplicate is asked. (If another thread closes the original
        meanwhile, closing the duplicate can block as close(2) can.)

        Raises:
            NotAllowedError: EACCES: the peer is not on the list.
            OSError, TypeError, ValueError: As for `read`, which says what
                `conn` may be, and as for `read_groups` if only a group
                could let the peer in.
            OSError: EMFILE, ENFILE: the table of descriptors is full, so
                there can be no duplicate.
        """
        if self.gids:
            cred, groups, groups_error = kernel.read_with_groups(descriptor(conn))
        else:
            cred, groups, groups_error = kernel.read(descriptor(conn)), (), None
        if self._permits(cred, groups):
            return cred
        raise groups_error or NotAllowedError(cred)

    def permits(self, cred: Cred | None, groups: "Ids" = ()) -> TypeGuard[Cred]:
        """Is this process on the list?

        This is the decision of `require` without the connection. Use it
        for the `cred` of a message, and in tests of your own server.

        Args:
            cred: The process. None (a message without a known sender) is
                never on the list.
            groups: Its supplementary groups. A message has none.

        Returns:
            True if `cred.uid` is in `uids`, or if `cred.gid` or one of
            `groups` is in `gids`. To a type checker, True also says that
            `cred` is not None.

        Raises:
            TypeError: `cred` is neither a `Cred` nor None, or `groups` is
                not an iterable of ints.
            ValueError: No group can have this number.
        """
        check_cred(cred)
        _check_iterable("groups", groups, "ints")
        gids = [checked("a group id", gid) for gid in groups]
        return cred is not None and self._permits(cred, gids)

    def _permits(self, cred: Cred, groups: Ids) -> bool:
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

    def __reduce__(self) -> "tuple[Any, ...]":
        return type(self), (self.uids, self.gids)


def _ids(kind: str, ids: IdsOrNames, overflow: int) -> frozenset[int] | range:
    _check_iterable("uids" if kind == "user" else "gids", ids, "ints and names")
    if type(ids) is range:
        for number in (ids[0], ids[-1]) if ids else ():
            checked(f"a {kind} id", number)
        return ids
    # Each as it comes: an iterable that never ends may begin with a bad one.
    return frozenset(_id(kind, id_, overflow) for id_ in ids)


def _id(kind: str, id_: object, overflow: int) -> int:
    value = _look_up(kind, id_) if issubclass(type(id_), str) else id_
    number = checked(f"a {kind} id", value, kind="an int or a name")
    if number == overflow:
        raise ValueError(
            f"{overflow} is the overflow {kind} id, shared by every {kind} without a mapping here, so it cannot be "
            f"listed: give the service its own {kind}"
        )
    return number


def _look_up(kind: str, name: "Any") -> int:
    """getpwnam(3) if kind is "user", getgrnam(3) if it is "group"."""
    import grp
    import pwd

    if str.isdecimal(name):
        raise ValueError(f"{name!r} is a {kind} id in quotes: remove the quotes")
    try:
        # Type checkers know neither module on Windows.
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid  # type: ignore[attr-defined, no-any-return, unused-ignore]
    except (KeyError, ValueError):
        raise ValueError(f"there is no {kind} named {name!r}") from None


def _check_iterable(name: str, ids: object, what: str) -> None:
    if isinstance(ids, str | bytes | bytearray | memoryview) or not hasattr(ids, "__iter__"):
        raise TypeError(f"{name} must be an iterable of {what}, not {ids!r}")


def _shown(ids: frozenset[int] | range) -> str:
    if isinstance(ids, range):
        return repr(ids)
    return f"{{{', '.join(map(str, sorted(ids)))}}}" if ids else "()"
