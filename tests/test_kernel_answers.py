"""Answers that this kernel never gives, put in the place of getsockopt's by a preloaded library, below the package."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
import sys

import pytest

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* getsockopt(2), but FAKE_OPTION answers the bytes of FAKE_ANSWER (in hex), or fails with FAKE_ERRNO. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");
    const char *answer = getenv("FAKE_ANSWER"), *error = getenv("FAKE_ERRNO");
    socklen_t i, size = answer ? strlen(answer) / 2 : 0;

    if (level != SOL_SOCKET || option != atoi(getenv("FAKE_OPTION")))
        return real(fd, level, option, value, length);
    if (error)
        return errno = atoi(error), -1;
    for (i = 0; i < size && i < *length; i++)
        sscanf(answer + 2 * i, "%2hhx", (unsigned char *)value + i);
    *length = size;
    return 0;
}
"""


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The library to preload."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip(reason="needs a C compiler, for a getsockopt that answers what no kernel does")
    source = tmp_path_factory.mktemp("shim") / "shim.c"
    source.write_text(SHIM)
    library = source.with_suffix(".so")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def ask(shim):
    """What a function of peercred answers of a good connection, when the option gives such an answer."""

    def ask(function, option, answer=None, error=None, connected=True):
        program = f"""
import socket, peercred
conn, other = socket.socketpair() if {connected} else (socket.socket(socket.AF_UNIX), None)
try:
    print(peercred.{function}(conn))
except OSError as error:
    print(type(error).__name__, error.errno, error)
"""
        fake = {"FAKE_ANSWER": answer.hex()} if error is None else {"FAKE_ERRNO": str(error)}
        env = {**os.environ, "LD_PRELOAD": str(shim), "FAKE_OPTION": str(int(option)), **fake}
        return subprocess.run(
            [sys.executable, "-c", program], env=env, check=True, capture_output=True, text=True
        ).stdout.strip()

    return ask


def test_the_shim_is_asked(ask):
    """The counter-test: a well-formed answer is believed."""
    answer = ask("read", socket.SO_PEERCRED, struct.pack("iII", 7, 8, 9))
    assert answer == "Cred(pid=7, uid=8, gid=9)"


@pytest.mark.parametrize("length", [0, 4, 8, 11, 13, 16])
def test_credentials_of_another_length_are_refused(ask, length):
    """Fewer than 12 bytes, or more, are no struct ucred: zeroes must not turn into root."""
    assert ask("read", socket.SO_PEERCRED, bytes(length)).startswith(f"OSError {errno.EPROTO} ")


@pytest.mark.parametrize("ids", [(2**32 - 1, 2**32 - 1), (2**32 - 1, 0), (0, 2**32 - 1)])
@pytest.mark.parametrize("pid", [0, 1])
def test_an_id_of_minus_one_is_nobody(ask, ids, pid):
    """Neither a uid nor a gid of -1 is an identity, whatever stands beside it."""
    assert ask("read", socket.SO_PEERCRED, struct.pack("iII", pid, *ids)).startswith(f"NoPeerError {errno.ENOTCONN} ")


def test_kernel_without_the_option(ask):
    """ENOPROTOOPT is "unsupported", and names the option."""
    answer = ask("read", socket.SO_PEERCRED, error=errno.ENOPROTOOPT)
    assert answer.startswith(f"UnsupportedError {errno.ENOPROTOOPT} ")
    assert "SO_PEERCRED" in answer


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOMEM, errno.EINVAL])
def test_other_errors_come_out(ask, error):
    """Every other errno is an OSError of that errno, in the class that Python has for it."""
    answer = ask("read", socket.SO_PEERCRED, error=error)
    assert answer.startswith(f"{type(OSError(error, '')).__name__} {error} ")


def test_no_word_on_listening_is_no_permission(ask):
    """If it cannot be known whether the socket listens, there is no answer: an error, an odd or a short reply."""
    assert ask("read", socket.SO_ACCEPTCONN, error=errno.EPERM).startswith(f"PermissionError {errno.EPERM} ")
    assert ask("read", socket.SO_ACCEPTCONN, b"").startswith("NoPeerError")
    assert ask("read", socket.SO_ACCEPTCONN, struct.pack("i", 1)).startswith("NoPeerError")


@pytest.mark.parametrize("option", [socket.SO_DOMAIN, socket.SO_TYPE])
def test_no_word_on_why_there_is_no_peer(ask, option):
    """If the socket is closed while the reason is looked up, that is what comes out."""
    answer = ask("read", option, error=errno.EBADF, connected=False)
    assert answer.startswith(f"OSError {errno.EBADF} ")
