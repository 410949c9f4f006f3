"""enable() on kernels that lack an option or refuse to change one."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from peers import SO_PASSPIDFD, SO_PASSRIGHTS, needs_pidfd

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

static int lacks(int level, int option)
{
    return level == SOL_SOCKET && getenv("LACKS") && option == atoi(getenv("LACKS"));
}

/* The kernel has no option LACKS. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");

    return lacks(level, option) ? (errno = ENOPROTOOPT, -1) : real(fd, level, option, value, length);
}

/* The same, and it refuses to change the option REFUSES. */
int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
    int (*real)(int, int, int, const void *, socklen_t) = dlsym(RTLD_NEXT, "setsockopt");

    if (level == SOL_SOCKET && getenv("REFUSES") && option == atoi(getenv("REFUSES")))
        return errno = EACCES, -1;
    return lacks(level, option) ? (errno = ENOPROTOOPT, -1) : real(fd, level, option, value, length);
}
"""

PRELUDE = """
import errno, os, socket
from peercred import messages
receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
sender.send(b"x")
def enable(**options):
    try:
        return messages.enable(receiver, **options)
    except OSError as error:
        return type(error).__name__, errno.errorcode[error.errno], error.strerror
def is_on(*options):
    return [receiver.getsockopt(socket.SOL_SOCKET, option) for option in options]
"""
OPTIONS = {"creds": int(socket.SO_PASSCRED), "pidfd": SO_PASSPIDFD, "label": int(socket.SO_PASSSEC)}
NAMES = {"creds": "SO_PASSCRED", "pidfd": "SO_PASSPIDFD", "label": "SO_PASSSEC"}
THREE = ", ".join(str(option) for option in OPTIONS.values())


@pytest.fixture
def run(preloaded):
    """What lines of Python print on such a kernel."""
    return lambda *lines, **env: preloaded(SHIM, "\n".join([PRELUDE, *lines]), **env).splitlines()


@needs_pidfd
@pytest.mark.parametrize("option", OPTIONS)
def test_lacking_and_wanted(run, option):
    """The error names the option, and the other options stay off."""
    others = [number for name, number in OPTIONS.items() if name != option]
    answer, state = run(f"print(enable({option}=True))", f"print(is_on(*{others}))", LACKS=OPTIONS[option])
    assert answer.startswith("('UnsupportedError', 'ENOPROTOOPT', ")
    assert NAMES[option] in answer
    assert state == "[0, 0]"


@needs_pidfd
@pytest.mark.parametrize("option", OPTIONS)
def test_lacking_and_not_wanted(run, option):
    """That it is off is what was asked for."""
    others = {name: number for name, number in OPTIONS.items() if name != option}
    wanted = ", ".join(f"{name}={name in others}" for name in OPTIONS)
    answer, state = run(f"print(enable({wanted}))", f"print(is_on(*{[*others.values()]}))", LACKS=OPTIONS[option])
    assert (answer, state) == ("None", "[1, 1]")


@pytest.mark.parametrize("fds", [True, False])
def test_kernel_that_cannot_refuse_descriptors(run, fds):
    """Before Linux 6.16 descriptors always come: fds is never an error."""
    answer = run(
        f"print(enable(fds={fds}))",
        "messages.receive(receiver, 10)",
        "messages.send(sender, b'y', fds=(0,))",
        "message = messages.receive(receiver, 10, max_fds=1)",
        "print(message.cred.uid, len(message.fds))",
        LACKS=SO_PASSRIGHTS,
    )
    assert answer == ["None", f"{os.getuid()} 1"]


def test_uninvited_descriptors_on_a_kernel_without_pidfds(run):
    """Where no pidfd can come, a message lacks none."""
    answer = run(
        "print(enable())",
        "messages.receive(receiver, 10)",
        "messages.send(sender, b'y', fds=(0, 0))",
        "print(messages.receive(receiver, 10).pidfd_error)",
        LACKS=SO_PASSPIDFD,
    )
    assert answer == ["None", "None"]


@needs_pidfd
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("option", [*OPTIONS.values(), SO_PASSRIGHTS])
def test_refused(run, option, before):
    """All options are then as they were, on or off."""
    answer, state = run(
        f"for option in ({THREE}): receiver.setsockopt(socket.SOL_SOCKET, option, {before})",
        f"os.environ['REFUSES'] = '{option}'",
        f"print(enable(creds={not before}, pidfd={not before}, label={not before}, fds={not before}))",
        f"print(is_on({THREE}))",
    )
    assert answer.startswith(f"('PermissionError', {errno.errorcode[errno.EACCES]!r}, ")
    assert state == str([before] * 3)
