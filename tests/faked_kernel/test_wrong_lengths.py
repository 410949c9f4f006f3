"""A kernel that says one length and writes another is not believed."""

from __future__ import annotations

import socket
import struct

import pytest
from peers import SO_PEERGROUPS, SO_PEERPIDFD
from questions import QUESTIONS

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* getsockopt(2), but of FAKE_OPTION it writes FAKE_WRITTEN bytes of the file at descriptor FAKE_BYTES, and says
   FAKE_LENGTH. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");
    const char *fake = getenv("FAKE_OPTION");

    if (fake == NULL || level != SOL_SOCKET || option != atoi(fake))
        return real(fd, level, option, value, length);
    *length = strtoul(getenv("FAKE_LENGTH"), NULL, 10);
    return pread(atoi(getenv("FAKE_BYTES")), value, atoi(getenv("FAKE_WRITTEN")), 0) < 0 ? -1 : 0;
}

/* getpeername(2), but with FAKE_SILENCE it succeeds, and writes nothing. */
int getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
    int (*real)(int, struct sockaddr *, socklen_t *) = dlsym(RTLD_NEXT, "getpeername");

    return getenv("FAKE_SILENCE") ? 0 : real(fd, address, length);
}
"""

PRELUDE = """
import errno, os, socket, tempfile
import peercred
conn, other = socket.socketpair()
other.bind("")  # so that the type of socket matters
def answer(function, option, written, length):
    with tempfile.TemporaryFile() as file:
        file.write(written)
        file.flush()
        fake = {"OPTION": option, "BYTES": file.fileno(), "WRITTEN": len(written), "LENGTH": length % 2**32}
        os.environ.update({f"FAKE_{name}": str(value) for name, value in fake.items()})
        try:
            return function(conn)
        except OSError as error:
            return type(error).__name__, errno.errorcode[error.errno]
        finally:
            del os.environ["FAKE_OPTION"]
"""


@pytest.fixture
def run(preloaded):
    """The value of an expression with answer(), on such a kernel."""
    return lambda expression, **env: preloaded(SHIM, f"{PRELUDE}\nprint({expression})", **env).strip()


REFUSED = "('OSError', 'EPROTO')"
STREAM = struct.pack("i", socket.SOCK_STREAM)


def test_the_kernel_is_believed_where_it_is_right(run):
    """The counter-test: with the right length, these answers are taken."""
    assert run(f"answer(peercred.read, {int(socket.SO_TYPE)}, {STREAM}, 4).pid == os.getpid()") == "True"
    assert run(f"answer(peercred.read_groups, {SO_PEERGROUPS}, {STREAM}, 4)") == "(1,)"
    assert run(f"answer(peercred.read_label, {int(socket.SO_PEERSEC)}, b'x' * 256, 256)") == repr(b"x" * 256)
    assert run(f"answer(peercred.open_pidfd, {SO_PEERPIDFD}, {STREAM}, 4)") == "1"
    allowed = "peercred.AllowList(gids={1}).require"
    assert run(f"answer({allowed}, {SO_PEERGROUPS}, {STREAM}, 4).pid == os.getpid()") == "True"


@pytest.mark.parametrize(("written", "length"), [(STREAM, 0), (STREAM, 3), (STREAM, 5), (STREAM, 8), (b"", 4)])
def test_type_of_socket(run, written, length):
    """It is an int, or the socket is not known to have one peer."""
    assert run(f"answer(peercred.read, {int(socket.SO_TYPE)}, {written}, {length})") == REFUSED


@pytest.mark.parametrize(("written", "length"), [(STREAM, 0), (STREAM, 3), (STREAM, 5), (STREAM, 8), (b"", 4)])
def test_pidfd(run, written, length):
    """It is an int, or no descriptor."""
    assert run(f"answer(peercred.open_pidfd, {SO_PEERPIDFD}, {written}, {length})") == REFUSED


@pytest.mark.parametrize("length", [2, 6, 8, 64 * 4, 65 * 4, 2**18 + 4, 2**31 - 4, -4])
@pytest.mark.parametrize("function", ["read_groups", "AllowList(gids={1}).require"])
def test_groups(run, function, length):
    """Half a group, or more than there is room for, or was written, is none."""
    assert run(f"answer(peercred.{function}, {SO_PEERGROUPS}, {STREAM}, {length})") == REFUSED


@pytest.mark.parametrize("length", [6, 256, 257, 258, 2**20 + 1, -1])
def test_label(run, length):
    """A longer one than there is room for, or was written, is none."""
    assert run(f"answer(peercred.read_label, {int(socket.SO_PEERSEC)}, b'label', {length})") == REFUSED


@pytest.mark.parametrize("function", [*map(str, QUESTIONS), "AllowList(uids={os.geteuid()}).require"])
def test_address_of_the_peer(run, function):
    """If the kernel writes no address family, it has not answered."""
    answer = run(f"answer(peercred.{function}, -1, b'', 0)", FAKE_SILENCE="1")
    assert answer == REFUSED
