"""Options as this kernel never has them: enable() and receive()."""

from __future__ import annotations

import errno
import os

import pytest
from peers import SO_PASSPIDFD, needs_pidfd


@needs_pidfd
def test_option_that_is_turned_on_meanwhile(run):
    """Credentials without room arrive in part, which is an error.

    The pidfd beside them is closed.
    """
    answer = run(
        "messages.receive(receiver, 10)",
        "messages.enable(receiver, creds=False, pidfd=True)",
        "sender.send(b'y')",
        "before = os.listdir('/proc/self/fd')",
        "try: messages.receive(receiver, 10)",
        "finally: print(os.listdir('/proc/self/fd') == before)",
        LATE=1,
    )
    assert answer.startswith(f"True\nOSError {errno.EMSGSIZE} the kernel had no room".replace("the", "[Errno 90] the"))


ENABLE = [
    "receiver.setsockopt(LEVEL, socket.SO_PASSSEC, 1)",
    "try: messages.enable(receiver, pidfd=True)",
    "finally: print(*(receiver.getsockopt(LEVEL, option) for option in (socket.SO_PASSCRED, socket.SO_PASSSEC)))",
]


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOPROTOOPT, f"UnsupportedError {errno.ENOPROTOOPT} "), (errno.EACCES, f"PermissionError {errno.EACCES} ")],
)
def test_enable_is_all_or_nothing(run, number, error):
    """If one option is refused, the others are as before.

    The error names it.
    """
    state, answer = run(*ENABLE, OPTION=SO_PASSPIDFD, ERRNO=number).splitlines()
    assert state == "0 1"
    assert answer.startswith(error)
    assert "SO_PASSPIDFD" in answer
    assert "SO_PASSRIGHTS" not in answer  # which nobody needs


def test_kernel_without_pidfds(run):
    """A kernel without SO_PASSPIDFD works if nobody asks for pidfds."""
    answer = run(
        "messages.enable(receiver)",
        "sender.send(b'y')",
        "messages.receive(receiver, 10)",
        "print(messages.receive(receiver, 10).cred.uid)",
        NO_OPTION=SO_PASSPIDFD,
        ERRNO=errno.ENOPROTOOPT,
    )
    assert answer == str(os.getuid())


def test_options_that_cannot_be_asked(run):
    """If the kernel does not say which options are on, it is an error.

    Not knowing is not "off".
    """
    answer = run("messages.receive(receiver, 10)", NO_OPTION=SO_PASSPIDFD, ERRNO=errno.EACCES)
    assert answer.startswith(f"PermissionError {errno.EACCES} ")
