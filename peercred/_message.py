"""Message: what `receive` returns."""

from dataclasses import dataclass, field
from errno import EBADF
from typing import Any, ClassVar

from ._cred import Cred


@dataclass(frozen=True)
class Message:
    """A received message. Immutable, except that it owns descriptors.

    You must close the pidfd and the attached descriptors: use `with` or
    `close()`, or take them over with `detach_pidfd()` and `detach_fds()`. A
    message that is dropped with descriptors in it closes them and gives a
    ResourceWarning (which is lost if the message is in a reference cycle).

    A copy never owns descriptors. While a message has some, copying or
    pickling it is a TypeError, and what `dataclasses.replace` or `asdict`
    makes of it has none. After a fork, the child's message owns the child's
    descriptors: close them only through it.

    Attributes:
        data: The bytes. On a stream socket they end where the sender
            changes. They are empty at the end of a stream.
        cred: The sender's real ids, or what it claims: see
            `peercred.messages`. `cred.pid` is None if the sender is outside
            the reader's PID namespace. `cred` is None if

            - SO_PASSCRED was off when the message was sent, or is off now;
            - a stream has ended, or gives pid 0 (there may be a pidfd);
            - the data is out-of-band;
            - the sender is outside both the PID and the user namespace: the
              kernel reports it like one whose SO_PASSCRED was off.
        label: The security label of the process that made the sender's
            socket, as from `peercred.read_label`, or None.
        flags: MSG_TRUNC (data was cut off), MSG_CTRUNC (control data was
            lost: as a rule, attached descriptors), MSG_OOB.
        address: Where the sender's socket is bound: a str if it is a path,
            bytes if it is abstract, None if it is unbound.
        pidfd_error: An OSError that says why there is no pidfd, although it
            is enabled. EMFILE, ENFILE: the table of descriptors is full.
            ESRCH: the sender is gone, and the kernel can no longer refer to
            it (before Linux 6.16). EMSGSIZE: other control data took its
            room: more than `max_fds` descriptors, or SO_TIMESTAMP. None if
            the kernel names no sender.
    """

    __module__ = "peercred.messages"

    data: bytes
    cred: Cred | None = None
    label: bytes | None = None
    flags: int = 0
    address: Any = None
    pidfd_error: OSError | None = field(default=None, compare=False, repr=False)
    # No field, so that no copy has it. receive() sets it.
    _owner: ClassVar[Any] = None

    @property
    def pidfd(self) -> int | None:
        """A close-on-exec pidfd of the sender, or None (see `pidfd_error`).

        MSG_PEEK receives a new one each time.
        """
        owner = self._owner
        return None if owner is None else next(iter(owner.numbers(owner.PIDFD)), None)

    @property
    def fds(self) -> tuple[int, ...]:
        """The close-on-exec descriptors that the sender attached.

        MSG_PEEK receives new ones each time.
        """
        owner = self._owner
        return () if owner is None else owner.numbers(owner.FDS)

    def detach_pidfd(self) -> int | None:
        """Take over the pidfd: now you must close it."""
        owner = self._owner
        if owner is None:
            return None
        taken = type(owner)()
        try:
            owner.move(taken, owner.PIDFD)
            pidfd = next(iter(taken.numbers(owner.PIDFD)), None)
            taken.struct.released = True
            return pidfd
        except BaseException:  # a signal handler raised before the caller had it
            taken.struct.released = False
            taken.move(owner, owner.PIDFD)
            raise

    def detach_fds(self) -> tuple[int, ...]:
        """Take over `fds`: now you must close them."""
        owner = self._owner
        if owner is None:
            return ()
        taken = type(owner)()
        try:
            owner.move(taken, owner.FDS)
            fds: tuple[int, ...] = taken.numbers(owner.FDS)
            taken.struct.released = True
            return fds
        except BaseException:
            taken.struct.released = False
            taken.move(owner, owner.FDS)
            raise

    def open_proc(self) -> int:
        """Open the directory in /proc of the process that `pidfd` refers to.

        You must close it. See `peercred.open_proc` for what it proves, and
        for its errors.

        Raises:
            OSError: `pidfd_error`, if there is one. EBADF: the message has
                no pidfd, or no longer.
        """
        if self.pidfd_error is not None:
            raise OSError(*self.pidfd_error.args)
        if self.pidfd is None:
            raise OSError(EBADF, "the message has no pidfd: it is not enabled, or was detached or closed")
        owner = self._owner
        taken = type(owner)()
        try:
            proc: int = owner.open_proc(taken)
            taken.struct.released = True
            return proc
        except BaseException:
            taken.close()
            raise

    def close(self) -> None:
        """Close the pidfd and `fds`, unless you have taken them over.

        A descriptor that lingers can block this for hours (see `receive`).
        Signal handlers run between two descriptors.
        """
        if self._owner is not None:
            self._owner.close()

    def __enter__(self) -> "Message":  # noqa: PYI034  # typing has Self from Python 3.11 on
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.pidfd is not None or self.fds:
            raise TypeError("a Message with descriptors cannot be copied or pickled: close or detach them first")
        return Message, (self.data, self.cred, self.label, self.flags, self.address, self.pidfd_error)


# It goes straight into the instance: __init__ takes more than twice as long. A
# field that is missing has the class's default.
_new = object.__new__
_set_fields = vars(Message)["__dict__"].__set__


def message_of(fields: dict[str, Any]) -> Message:
    """The Message with these fields, and an `_owner` if it has descriptors."""
    message = _new(Message)
    _set_fields(message, fields)
    return message
