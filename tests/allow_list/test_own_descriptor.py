"""require() with gids makes a descriptor of its own and asks that."""

from __future__ import annotations

import errno
import re
import socket

import pytest
from peers import SO_PEERGROUPS, needs_cpython

import peercred

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static int asked = -1;

/* getsockopt(2), which says of the descriptor that is asked for groups whether exec closes it. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");
    struct sockaddr peer;

    if (level == SOL_SOCKET && option == SO_PEERCRED && getpeername(fd, &peer, &(socklen_t){sizeof peer}) == 0)
        dprintf(1, "credentials of %d\n", fd);
    if (level == SOL_SOCKET && option == atoi(getenv("SO_PEERGROUPS"))) {
        asked = fd;
        dprintf(1, "asked %d, close-on-exec %d\n", fd, (fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    }
    return real(fd, level, option, value, length);
}

/* close(2), which says of that descriptor whether the interpreter's lock is held. */
int close(int fd)
{
    int (*real)(int) = dlsym(RTLD_NEXT, "close"), (*held)(void) = dlsym(RTLD_DEFAULT, "PyGILState_Check");

    if (fd == asked) {
        asked = -1;
        dprintf(1, "closed %d, lock %s\n", fd, held() ? "held" : "released");
    }
    return real(fd);
}
"""

PROGRAM = """
import errno, os, resource, socket, peercred
ours, theirs = socket.socketpair()
allowed = peercred.AllowList(gids={2**32 - 2})
for number in os.environ.get("CLOSE", "").split():
    os.close(int(number))
if "FULL" in os.environ:
    resource.setrlimit(resource.RLIMIT_NOFILE, (theirs.fileno() + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    allowed.require(ours)
except OSError as error:
    print("refused", ours.fileno(), type(error).__name__, errno.errorcode[error.errno], flush=True)
"""


@pytest.fixture
def run(preloaded):
    """The lines that the program prints, and what the library below it says."""
    return lambda **env: preloaded(SHIM, PROGRAM, SO_PEERGROUPS=SO_PEERGROUPS, **env).splitlines()


@needs_cpython("PyPy has released its lock by itself")
def test_asked_both_questions_and_closed(run):
    """No program inherits it, and other threads run while it is closed."""
    credentials, asked, closed, refused = run()
    own = asked.split()[1].rstrip(",")
    assert credentials == f"credentials of {own}"
    assert asked == f"asked {own}, close-on-exec 1"
    assert closed == f"closed {own}, lock released"
    assert re.fullmatch(r"refused \d+ NotAllowedError EACCES", refused)
    assert own not in refused.split()


@needs_cpython("PyPy has released its lock by itself")
@pytest.mark.parametrize("closed", ["2", "0 2"])
def test_its_number_is_none_of_the_standard_streams(run, closed):
    """A daemon without standard error never logs to its peer.

    Number 2 would be the connection for a moment, and another thread may log.
    """
    _, asked, _, _ = run(CLOSE=closed)
    assert int(asked.split()[1].rstrip(",")) >= 3


def test_full_table(run):
    """Without a descriptor of its own it asks nothing: EMFILE."""
    (refused,) = run(FULL="1")
    assert re.fullmatch(r"refused \d+ OSError EMFILE", refused)


def test_closed_socket():
    """EBADF, and nothing is asked."""
    with socket.socket(socket.AF_UNIX) as sock:
        number = sock.fileno()
    with pytest.raises(OSError, match="Unix socket") as caught:
        peercred.AllowList(gids={2**32 - 2}).require(number)
    assert (type(caught.value), caught.value.errno) == (OSError, errno.EBADF)
