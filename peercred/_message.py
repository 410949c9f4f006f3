"""What was received: Message."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ._cred import Cred
from ._owned import NOTHING, Owned


@dataclass(frozen=True)
class Message:
    """A message that `receive` received. Immutable, but for its descriptors.

    The pidfd and the attached descriptors are yours. `with` and `close()` close
    them; `detach_pidfd()` and `detach_fds()` hand them over, and from then on
    `pidfd` is None and `fds` is (). A message that is dropped with any of them
    left closes them with a ResourceWarning. A descriptor has one owner: as long
    as there is any, the message cannot be copied or pickled, and what
    `dataclasses.replace` makes of it has none.

    Attributes:
        data: What was sent. On a stream, up to where the sender changes. Empty
            also at the end of a stream.
        cred: The sender's real ids, or its claim (see `peercred.messages`).
            None if the kernel has vouched for nobody: SO_PASSCRED is off, or
            was off when the message was sent; it is out-of-band data; or it is
            the end of a stream, which Linux itself marks as sent by root.
            `cred.pid` is None if the sender is outside of the reader's PID
            namespace. A sender that is outside of the user namespace as well
            cannot be told from one that nobody vouched for: `cred` is None.
        label: The security label of the process that made the sender's socket,
            without the NUL that SELinux ends it with. None if there is none.
        flags: MSG_TRUNC, MSG_CTRUNC (descriptors that were attached are lost),
            MSG_EOR, MSG_OOB.
        address: The address that the sender's socket is bound to, or None.
        pidfd_error: Why there is no pidfd although it is enabled, for you to
            look at or to raise. EMFILE or ENFILE: the table of descriptors is
            full. ESRCH: the sender is gone, and the kernel can no longer refer
            to it. EMSGSIZE: more descriptors were attached than `max_fds`, and
            took its room. None if the kernel has vouched for nobody.
    """

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
        """A pidfd of the sender, or None: see `pidfd_error`.

        It is close-on-exec. Each message has a new one, and each MSG_PEEK.
        """
        fds = self._pidfd.fds
        return fds[0] if fds else None

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that the sender attached, up to `max_fds`.

        They are close-on-exec. Each MSG_PEEK makes new ones.
        """
        return self._fds.fds

    def detach_pidfd(self) -> int | None:
        """Hand over the pidfd: from now on, to close it is up to you alone."""
        fds, pidfd = self._pidfd.fds, self.pidfd
        try:
            self._pidfd.forget()
            return pidfd
        except BaseException:  # a signal handler's, before the caller has it
            self._pidfd.take_back(fds)
            raise

    def detach_fds(self) -> tuple[int, ...]:
        """Hand over `fds`: from now on, to close them is up to you alone."""
        fds = self._fds.fds
        try:
            self._fds.forget()
            return fds
        except BaseException:
            self._fds.take_back(fds)
            raise

    def close(self) -> None:
        """Close the pidfd and `fds`, those that are left.

        To close what a stranger attached can block, see `receive`.
        """
        self._pidfd.close()
        self._fds.close()

    def __enter__(self) -> Message:  # noqa: PYI034  # typing has Self from Python 3.11 on
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._pidfd.fds or self._fds.fds:
            raise TypeError("a Message with descriptors cannot be copied or pickled: close or detach them first")
        return Message, (self.data, self.cred, self.label, self.flags, self.address, self.pidfd_error)
