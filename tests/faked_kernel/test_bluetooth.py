"""A Bluetooth socket has no peer.

It answers with the ids of its own maker, and an accepted one with its
listener's. Few machines have Bluetooth, so a preloaded library lets Unix
sockets answer as Bluetooth sockets do on Linux 6.1 and 6.12. Real ones, where
the kernel has them, are among the families of test_other_families.py.
"""

from __future__ import annotations

import errno
import socket

import pytest
from questions import QUESTIONS

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

/* The family is AF_BLUETOOTH. The credentials are real: they are those of the process itself. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");
    int result = real(fd, level, option, value, length);

    if (level == SOL_SOCKET && option == SO_DOMAIN)
        *(int *)value = AF_BLUETOOTH;
    return result;
}

int getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
    if (!getenv("CONNECTED"))
        return errno = ENOTCONN, -1;
    address->sa_family = AF_BLUETOOTH;
    *length = 14;
    return 0;
}
"""

PROGRAM = """
import os, socket, sys
import peercred

listed, *names = sys.argv[1:]
allowed = peercred.AllowList(uids={os.geteuid()}, gids={os.getegid()} if listed == "gids" else ())
conn, other = socket.socketpair()
before = os.listdir("/proc/self/fd")
for function in (*(getattr(peercred, name) for name in names), allowed.require):
    try:
        print("let in:", function(conn))
    except OSError as error:
        print(type(error).__name__, error.errno, error.strerror)
assert os.listdir("/proc/self/fd") == before
"""


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("listed", ["uids", "gids"])
def test_bluetooth_socket_is_nobody(preloaded, connected, listed):
    """Every function refuses a Bluetooth socket, connected or not."""
    env = {"CONNECTED": 1} if connected else {}
    lines = preloaded(SHIM, PROGRAM, listed, *map(str, QUESTIONS), **env).splitlines()
    assert len(lines) == len(QUESTIONS) + 1
    for line in lines:
        assert line.startswith(f"NoPeerError {errno.EAFNOSUPPORT} only Unix sockets have peer credentials")
        # Some CPythons are built without Bluetooth's headers.
        assert line.endswith("AF_BLUETOOTH" if hasattr(socket, "AF_BLUETOOTH") else "address family 31")
