"""The answer: Cred."""

# No `from __future__ import annotations` here: given strings as annotations,
# dataclasses imports re on CPython 3.15.
from dataclasses import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PID_MAX = 2**31 - 1
ID_MAX = 2**32 - 2  # 2**32 - 1 is -1, which the kernel uses for "no id"


@dataclass(frozen=True)
class Cred:
    """A process, as the kernel recorded it. An immutable value.

    You can compare, hash, copy and pickle it. Where it comes from decides
    which ids these are (effective or real) and when they were recorded.

    Attributes:
        pid: The process id (of the thread group) in the reader's PID
            namespace, from 1 to 2147483647. None if the process is outside
            that namespace: the kernel says 0 there, and `os.kill(0, sig)`
            would signal the caller's own process group.
        uid: The user id in the reader's user namespace, from 0 to
            4294967294, or the overflow id (usually 65534) for every user
            without a mapping there.
        gid: The primary group id, likewise.

    Raises:
        TypeError: An argument is not an int.
        ValueError: No process can have this id.
    """

    __slots__ = ("gid", "pid", "uid")  # slots=True would add methods to help()

    pid: int | None
    uid: int
    gid: int

    # What tracebacks show and pickles store: a module here may be renamed.
    __module__ = "peercred"

    def __post_init__(self) -> None:
        put = object.__setattr__
        if self.pid is not None:
            put(self, "pid", checked("pid", self.pid, 1, PID_MAX, "an int or None"))
        put(self, "uid", checked("uid", self.uid))
        put(self, "gid", checked("gid", self.gid))

    def __reduce__(self) -> tuple[type["Cred"], tuple[int | None, int, int]]:
        return type(self), (self.pid, self.uid, self.gid)


# What C has checked goes straight into the slots: the constructor is slower.
_new = object.__new__
_set_pid, _set_uid, _set_gid = (vars(Cred)[name].__set__ for name in ("pid", "uid", "gid"))


def cred_of(ucred: "Any") -> Cred | None:
    """The Cred of a struct from C, or None if its pid is a negative result."""
    pid = ucred.pid
    if pid < 0:
        return None
    cred = _new(Cred)
    _set_pid(cred, pid or None)
    _set_uid(cred, ucred.uid)
    _set_gid(cred, ucred.gid)
    return cred


def check_cred(cred: object) -> None:
    """Refuse what is neither a Cred nor None."""
    if cred is not None and not issubclass(type(cred), Cred):  # __class__ can lie, as a mock's does
        raise TypeError(f"cred must be a peercred.Cred or None, not {cred!r}")


def as_int(value: "Any") -> int | None:
    """The plain int of an int, or None. A bool is no int here.

    An int of another class may compare as it likes.
    """
    return int.__index__(value) if issubclass(type(value), int) and type(value) is not bool else None


def checked(name: str, value: object, least: int = 0, most: int = ID_MAX, kind: str = "an int") -> int:
    """A number, if it is an int in these bounds: by default, those of an id."""
    number = as_int(value)
    if number is None:
        raise TypeError(f"{name} must be {kind}, not {value!r}")
    if not least <= number <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {number}")
    return number
