"""Every question looks for the peer after it has asked for the option.

Until a socket is connected, another thread can make it listen at any moment. A
preloaded library writes down libc's calls about the socket.
"""

from __future__ import annotations

import os
import socket

import pytest
from peers import SO_PEERGROUPS
from questions import QUESTIONS

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>

/* Whether this is the socket with the inode SOCKET, whatever its number is. */
static int watched(int fd)
{
    const char *inode = getenv("SOCKET");
    struct stat status;

    return inode && fstat(fd, &status) == 0 && status.st_ino == strtoul(inode, NULL, 10);
}

int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");

    if (watched(fd))
        dprintf(1, "%d\n", option);
    return real(fd, level, option, value, length);
}

int getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
    int (*real)(int, struct sockaddr *, socklen_t *) = dlsym(RTLD_NEXT, "getpeername");

    if (watched(fd))
        dprintf(1, "getpeername\n");
    return real(fd, address, length);
}
"""

PROGRAM = """
import os, socket, sys
import peercred
conn, other = socket.socketpair()
function = eval(sys.argv[1])
os.environ["SOCKET"] = str(os.fstat(conn.fileno()).st_ino)
try:
    function(conn)
except OSError:  # without the option, too
    pass
finally:
    del os.environ["SOCKET"]
"""

ASKED = {f"peercred.{question}": {question.number} for question in QUESTIONS} | {
    f"peercred.AllowList(uids={{{os.geteuid()}}}).require": {int(socket.SO_PEERCRED)},
    f"peercred.AllowList(gids={{{os.getegid()}}}).require": {int(socket.SO_PEERCRED), SO_PEERGROUPS},
}


@pytest.mark.parametrize("function", ASKED)
def test_peer_is_looked_for_last(preloaded, function):
    """getpeername(2) follows all that is asked for, so it decides."""
    calls = preloaded(SHIM, PROGRAM, function).splitlines()
    options = {str(option) for option in ASKED[function]}
    asked = [call for call in calls if call in {*options, "getpeername"}]
    assert options <= set(asked)
    assert asked[-1] == "getpeername"
