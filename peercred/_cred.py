"""The answer: Cred."""

# Without `annotations` of __future__: of strings, dataclasses would import re.
from dataclasses import dataclass

PID_MAX = 2**31 - 1
ID_MAX = 2**32 - 2  # 2**32 - 1 is -1, which is nobody


@dataclass(frozen=True, slots=True)
class Cred:
    """A process, as the kernel recorded it. An immutable value.

    It can be compared, hashed, copied and pickled. The function or message
    that it comes from says which ids these are (effective or real) and when
    they were recorded.

    Attributes:
        pid: The process id (of the thread group) in the reader's PID namespace,
            from 1 to 2147483647. None if the process is outside of that
            namespace: the kernel says 0 there, and `os.kill(0, sig)` would
            signal the caller's own process group. Another process may have
            the number by now.
        uid: The user id in the reader's user namespace, from 0 to 4294967294.
            A user without a mapping there reads as the overflow id (65534,
            see /proc/sys/kernel/overflowuid).
        gid: The primary group id, likewise (overflowgid).

    Raises:
        TypeError: The constructor was given something other than ints.
        ValueError: The constructor was given a number that no process has.
    """

    pid: int | None
    uid: int
    gid: int

    def __post_init__(self) -> None:
        if self.pid is not None:
            _check("pid", self.pid, 1, PID_MAX)
        _check("uid", self.uid, 0, ID_MAX)
        _check("gid", self.gid, 0, ID_MAX)


def _check(name: str, number: int, least: int, most: int) -> None:
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{name} must be an int{' or None' * (name == 'pid')}, not {number!r}")
    if not least <= number <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {number}")
