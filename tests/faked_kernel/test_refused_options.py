"""Socket options that the kernel refuses, or does not have.

EPERM is 1, the smallest errno: -1 must never be taken for an answer.
"""

from __future__ import annotations

import errno
import os
import socket

import pytest
from peers import SO_PASSPIDFD, SO_PEERGROUPS
from questions import QUESTIONS

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

static int refused(const char *call, int level, int option)
{
    const char *fake = getenv(call);

    if (!fake || level != SOL_SOCKET || option != atoi(fake))
        return 0;
    errno = atoi(getenv("FAKE_ERRNO"));
    return 1;
}

/* getsockopt(2) and setsockopt(2), but FAKE_ERRNO for the options FAKE_GET and FAKE_SET. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");
    return refused("FAKE_GET", level, option) ? -1 : real(fd, level, option, value, length);
}

int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
    int (*real)(int, int, int, const void *, socklen_t) = dlsym(RTLD_NEXT, "setsockopt");
    return refused("FAKE_SET", level, option) ? -1 : real(fd, level, option, value, length);
}
"""

PROGRAM = """
import errno, os, socket, sys
import peercred
from peercred import messages
conn, other = socket.socketpair()
everyone = peercred.AllowList(uids=range(2**32 - 1))
by_group = peercred.AllowList(gids=range(2**32 - 1))
own_user = peercred.AllowList(uids={os.geteuid()}, gids={2**32 - 2})
other_group = peercred.AllowList(gids={2**32 - 2})
other.send(b"x")
tcp = socket.socket()
# Only now: to make a list, the kernel is asked for the overflow ids.
os.environ.update({name[6:]: value for name, value in os.environ.items() if name.startswith("LATER_")})
try:
    print(eval(sys.argv[1]))
except OSError as error:
    print(type(error).__name__, error.errno, error)
"""


@pytest.fixture
def refused(preloaded):
    """What a program prints where getsockopt or setsockopt fails."""

    def refused(expression, number=errno.EPERM, **options):
        fakes = {f"LATER_FAKE_{name.upper()}": option for name, option in options.items()}
        return preloaded(SHIM, PROGRAM, expression, LATER_FAKE_ERRNO=number, **fakes)

    return refused


READS = {
    **{f"peercred.{question}(conn)": question.number for question in QUESTIONS},
    "everyone.require(conn)": socket.SO_PEERCRED,
    "by_group.require(conn)": socket.SO_PEERCRED,
    "other_group.require(conn)": SO_PEERGROUPS,
    "messages.receive(conn, 1)": socket.SO_PASSCRED,
    "messages.send(conn, b'x')": socket.SO_DOMAIN,
}


@pytest.mark.parametrize("expression", READS)
def test_refused_read(refused, expression):
    """If the kernel refuses an option by EPERM, every function raises it."""
    assert refused(expression, get=READS[expression]).startswith(f"PermissionError {errno.EPERM} ")


def test_refused_groups_of_a_listed_user(refused):
    """A user listed by uid is admitted, although the groups are refused."""
    assert refused("own_user.require(conn)", get=SO_PEERGROUPS).startswith("Cred(")


@pytest.mark.parametrize("option", [socket.SO_PASSCRED, socket.SO_PASSSEC])
def test_refused_enable(refused, option):
    """enable() raises, and names the option that is refused, and no other."""
    answer = refused("messages.enable(conn, label=True)", set=option)
    assert answer.startswith(f"PermissionError {errno.EPERM} ")
    assert {socket.SO_PASSCRED: "SO_PASSCRED of", socket.SO_PASSSEC: "SO_PASSSEC of"}[option] in answer
    assert answer.count("SO_PASS") == 1


def test_family_that_cannot_be_asked(refused):
    """A socket has no peer even if the kernel does not tell its family."""
    assert refused("peercred.read(socket.socket(socket.AF_UNIX))", get=socket.SO_DOMAIN).startswith(
        f"NoPeerError {errno.ENOTCONN} "
    )
    program = "tcp.bind(('127.0.0.1', 0)) or tcp.listen() or socket.create_connection(tcp.getsockname())"
    assert refused(f"peercred.read({program})", get=socket.SO_DOMAIN).startswith(f"NoPeerError {errno.EAFNOSUPPORT} ")


@pytest.mark.parametrize("lacking", [{"get": SO_PASSPIDFD}, {}])
def test_the_shim_is_asked(refused, lacking):
    """The counter-test: without a refusal, everything works."""
    assert refused("messages.send(conn, b'x'), own_user.require(conn).uid", **lacking) == f"(1, {os.geteuid()})\n"


def test_option_that_is_lacking(refused):
    """enable() names the option that the kernel lacks, and not the others."""
    numbers = {"get": SO_PASSPIDFD, "set": SO_PASSPIDFD}
    answer = refused("messages.enable(conn, pidfd=True, label=True)", number=errno.ENOPROTOOPT, **numbers)
    assert answer.startswith(f"UnsupportedError {errno.ENOPROTOOPT} ")
    assert [name for name in ("CRED", "PIDFD", "SEC", "RIGHTS") if f"SO_PASS{name}" in answer] == ["PIDFD"]
