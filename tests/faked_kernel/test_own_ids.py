"""A kernel that takes whoever asks for the peer, as gVisor's old ones do."""

from __future__ import annotations

import errno
import os

import pytest
from questions import QUESTIONS

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* getsockopt(2), but if OWN is set, SO_PEERCRED is who asks, as gVisor says before release-20251103. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");

    if (!getenv("OWN") || option != SO_PEERCRED)
        return real(fd, level, option, value, length);
    *(struct ucred *)value = (struct ucred){getpid(), geteuid(), getegid()};
    *length = sizeof(struct ucred);
    return 0;
}

/* socket(2), which says that it was called, and fails if NONE is set. */
int socket(int family, int type, int protocol)
{
    int (*real)(int, int, int) = dlsym(RTLD_NEXT, "socket");

    dprintf(1, "socket\n");
    return getenv("NONE") ? (errno = EAFNOSUPPORT, -1) : real(family, type, protocol);
}
"""

PROGRAM = """
import os, socket, sys
import peercred
conn, other = socket.socketpair()
for _ in range(3):
    try:
        print(eval(sys.argv[1])(conn).pid == os.getpid(), flush=True)
    except OSError as error:
        print(type(error).__name__, error.errno, flush=True)
"""

LISTS = f"uids={{{os.geteuid()}}}", f"gids={{{os.getegid()}}}"
ASKED = [
    *(f"peercred.{question.name}" for question in QUESTIONS),
    *(f"peercred.AllowList({ids}).require" for ids in LISTS),
]


@pytest.mark.parametrize("function", ASKED)
def test_nobody_is_taken_for_the_server(preloaded, function):
    """No question is answered, and nobody is let in, however often asked."""
    said = preloaded(SHIM, PROGRAM, function, OWN=1).splitlines()
    assert said == ["socket", f"UnsupportedError {errno.ENOPROTOOPT}"] * 3


def test_a_sound_kernel_is_tried_once(preloaded):
    """One look at a socket without a peer is enough."""
    assert preloaded(SHIM, PROGRAM, "peercred.read").splitlines() == ["socket", "True", "True", "True"]


def test_where_no_socket_can_be_made(preloaded):
    """A sandbox that forbids to make sockets does not forbid to ask."""
    said = preloaded(SHIM, PROGRAM, "peercred.read", NONE=1).splitlines()
    assert said == ["socket", "True"] * 3
