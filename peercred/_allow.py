"""Who may come in: AllowList."""

import errno
from dataclasses import dataclass, field

from ._cred import Cred
from ._descriptor import Connection
from ._read import kernel, read, read_groups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_ID_MAX = 2**32 - 2  # the next one, -1 as unsigned, is nobody's


@dataclass(frozen=True, slots=True, init=False, repr=False)
class AllowList:
    """The users and groups whose processes may come in: an immutable, comparable value, made once, at start.

        allowed = peercred.AllowList(uids={0, 1000}, gids={27})
        cred = allowed.require(conn)  # a Cred, or an OSError, which means "refuse"

    Nobody is on it who is not listed: an empty list refuses everyone, and root needs a 0.

    The overflow ids (65534 as a rule: /proc/sys/kernel/overflowuid and overflowgid, read when the list is made) stand
    for every user, and every group, that has no mapping in the reader's user namespace. They identify nobody, so
    they never match, and to list one is an error: a server that has no mapping itself would otherwise let in all
    the others without one by `uids={os.geteuid()}`.

    Args:
        uids: Effective user ids, of those whom `read` may name. Any iterable of ints, read once. A range stays a
            range, however long; an overflow id within it does not match.
        gids: Group ids likewise: of the primary group, or of any supplementary one.

    Raises:
        TypeError: Not an iterable of ints. (Neither a bool, nor a name: look names up before.)
        ValueError: An id outside of 0 to 4294967294, or an overflow id.
        UnsupportedError: ENOTSUP: this is not Linux.
        OSError: The overflow ids cannot be read, for there is no /proc.

    References:
        user_namespaces(7), proc_sys_kernel(5).
    """

    uids: frozenset[int] | range
    gids: frozenset[int] | range
    _overflow_uid: int = field(init=False)
    _overflow_gid: int = field(init=False)

    def __init__(self, uids: "Iterable[int]" = (), gids: "Iterable[int]" = ()) -> None:
        overflow_uid, overflow_gid = kernel.overflow_ids()
        for name, value in (
            ("uids", _ids("uids", uids, overflow_uid)),
            ("gids", _ids("gids", gids, overflow_gid)),
            ("_overflow_uid", overflow_uid),
            ("_overflow_gid", overflow_gid),
        ):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"AllowList(uids={_shown(self.uids)}, gids={_shown(self.gids)})"

    def require(self, conn: Connection) -> Cred:
        """Let in the peer of a connection, or raise.

        It is in if `read` gives a uid of `uids`, or a gid of `gids`, or if one of `read_groups` is in `gids`; these are
        asked for only if nothing else has matched. What the answer proves, and what not, is as for these two.

        Args:
            conn: As for `read`.

        Returns:
            The peer's `Cred`.

        Raises:
            PermissionError: EACCES: it is not on the list; the message says who it is.
            OSError, TypeError, ValueError: As `read` and `read_groups`, unchanged: whoever cannot be identified is
                not let in.
        """
        cred = read(conn)
        if cred.uid in self.uids and cred.uid != self._overflow_uid:
            return cred
        if self.gids:
            for gid in (cred.gid, *read_groups(conn)):
                if gid in self.gids and gid != self._overflow_gid:
                    return cred
        raise PermissionError(errno.EACCES, f"not on the allow-list: pid {cred.pid}, uid {cred.uid}, gid {cred.gid}")


def _ids(name: str, ids: "Iterable[int]", overflow: int) -> frozenset[int] | range:
    if isinstance(ids, str | bytes | bytearray | memoryview) or not hasattr(ids, "__iter__"):
        raise TypeError(f"{name} is an iterable of ints, such as {{0, 1000}}, and not {ids!r}")
    if isinstance(ids, range):
        checked: Iterable[int] = (ids[0], ids[-1]) if ids else ()
    else:
        checked = ids = frozenset(map(_id, ids))
        if overflow in ids:
            raise ValueError(
                f"{overflow} in {name} is the overflow id: it stands for everyone who has no mapping in this user "
                "namespace, so it must not let anyone in. Give the service a user or group of its own"
            )
    for id_ in checked:
        if not 0 <= id_ <= _ID_MAX:
            raise ValueError(f"{id_} in {name} is not an id: those are from 0 to {_ID_MAX}")
    return ids


def _id(id_: int) -> int:
    if not isinstance(id_, int) or isinstance(id_, bool):
        raise TypeError(f"an id is an int, and not {id_!r}: look the number of a name up by pwd or grp")
    return int(id_)


def _shown(ids: frozenset[int] | range) -> str:
    if isinstance(ids, range):
        return repr(ids)
    return f"{{{', '.join(map(str, sorted(ids)))}}}" if ids else "()"
