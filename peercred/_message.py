"""Message: what `receive` returns."""

from dataclasses import dataclass, field
from typing import Any

from ._cred import Cred
from ._owned import NOTHING, Owned


@dataclass(frozen=True)
class Message:
    """A received message. Immutable, except that it owns descriptors.

    You must close the pidfd and the attached descriptors: use `with`, or
    `close()`. To keep them longer than the message, take them over with
    `detach_pidfd()` and `detach_fds()`. A message that is dropped with
    descriptors in it closes them and gives a ResourceWarning.

    While a message has descriptors, you cannot copy or pickle it, and
    `dataclasses.replace` makes a message without them.

    Attributes:
        data: The bytes. On a stream socket they end where the sender
            changes. They are empty at the end of a stream.
        cred: The sender's real ids, or what it claims. It proves only that
            the sender may act as this user and group: see
            `peercred.messages`. `cred.pid` is None if the sender is outside
            the reader's PID namespace. `cred` is None if the kernel vouches
            for nobody: SO_PASSCRED was off when the message was sent or is
            off now; the data is out-of-band; it is the end of a stream,
            which Linux itself marks as sent by root; or the sender is
            outside both the PID and the user namespace, which the kernel
            reports in the same way.
        label: The security label of the process that made the sender's
            socket, without the NUL at the end of SELinux's. None if there
            is none.
        flags: MSG_TRUNC (data was cut off), MSG_CTRUNC (control data was
            lost: as a rule, descriptors that were attached), MSG_EOR,
            MSG_OOB.
        address: The address that the sender's socket is bound to, or None.
        pidfd_error: An OSError that says why there is no pidfd, although it
            is enabled. EMFILE, ENFILE: the table of descriptors is full.
            ESRCH: the sender is gone, and the kernel can no longer refer to
            it. EMSGSIZE: there was no room for it, because more than
            `max_fds` descriptors were attached, or because SO_TIMESTAMP or
            the like is on. None if the kernel vouches for nobody.
    """

    __module__ = "peercred.messages"

    data: bytes
    cred: Cred | None = None
    label: bytes | None = None
    flags: int = 0
    address: Any = None
    pidfd_error: OSError | None = field(default=None, compare=False, repr=False)
    _pidfd: Owned = field(default=NOTHING, init=False, compare=False, repr=False)
    _fds: Owned = field(default=NOTHING, init=False, compare=False, repr=False)

    @property
    def pidfd(self) -> int | None:
        """A close-on-exec pidfd of the sender, or None: see `pidfd_error`.

        Each message has a new one, even if MSG_PEEK received it.
        """
        fds = self._pidfd.fds
        return fds[0] if fds else None

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that the sender attached, up to `max_fds`.

        They are close-on-exec. Each message has new ones, even if MSG_PEEK
        received it.
        """
        return self._fds.fds

    def detach_pidfd(self) -> int | None:
        """Take over the pidfd. From now on, you must close it yourself."""
        fds, pidfd = self._pidfd.fds, self.pidfd
        try:
            self._pidfd.forget()
            return pidfd
        except BaseException:  # a signal handler raised before the caller had it
            self._pidfd.take_back(fds)
            raise

    def detach_fds(self) -> tuple[int, ...]:
        """Take over `fds`. From now on, you must close them yourself."""
        fds = self._fds.fds
        try:
            self._fds.forget()
            return fds
        except BaseException:
            self._fds.take_back(fds)
            raise

    def close(self) -> None:
        """Close the pidfd and `fds`, unless you have taken them over.

        This may block if a stranger attached the descriptors: see
        `receive`.
        """
        self._pidfd.close()
        self._fds.close()

    def __enter__(self) -> "Message":  # noqa: PYI034  # typing has Self from Python 3.11 on
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._pidfd.fds or self._fds.fds:
            raise TypeError("a Message with descriptors cannot be copied or pickled: close or detach them first")
        return Message, (self.data, self.cred, self.label, self.flags, self.address, self.pidfd_error)
