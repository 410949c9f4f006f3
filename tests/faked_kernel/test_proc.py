"""open_proc() and the overflow ids, where /proc or the kernel is strange."""

from __future__ import annotations

import errno

import pytest
from peers import needs_pidfd

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/vfs.h>
#include <unistd.h>

/* open(2), but a file in fdinfo holds what FAKE_FIRST says, and the next time what FAKE_SECOND says. A directory of a
   process fails with FAKE_OPEN. */
static int fake_open(const char *name, const char *path, int flags, int mode)
{
    static int looks;
    const char *text = getenv(looks ? "FAKE_SECOND" : "FAKE_FIRST"), *error = getenv("FAKE_OPEN");
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, name), fd;

    if (!strncmp(path, "/proc/thread-self/fdinfo/", 25) && !(fcntl(atoi(path + 25), F_GETFD) & FD_CLOEXEC))
        abort(); /* a program that another thread starts would have it */
    if (!strncmp(path, "/proc/thread-self/fdinfo/", 25) && text) {
        looks++;
        fd = memfd_create("fdinfo", MFD_CLOEXEC);
        if (write(fd, text, strlen(text)) < 0 || lseek(fd, 0, SEEK_SET) < 0)
            abort();
        return fd;
    }
    if (!strncmp(path, "/proc/", 6) && strspn(path + 6, "0123456789") == strlen(path + 6) && error)
        return errno = atoi(error), -1;
    return real(path, flags, mode);
}

/* fstatfs(2), but with FAKE_TYPE it says that this is another file system, or fails. */
static int fake_fstatfs(const char *name, int fd, struct statfs *mounted)
{
    int (*real)(int, struct statfs *) = dlsym(RTLD_NEXT, name);
    const char *type = getenv("FAKE_TYPE");

    if (type && !strcmp(type, "fails"))
        return errno = EIO, -1;
    if (real(fd, mounted) != 0)
        return -1;
    if (type)
        mounted->f_type = 1; /* which comes first in the other struct too */
    return 0;
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    return fake_open("open", path, flags, flags & O_CREAT ? va_arg(rest, int) : 0);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    return fake_open("open64", path, flags, flags & O_CREAT ? va_arg(rest, int) : 0);
}

int fstatfs(int fd, struct statfs *mounted)
{
    return fake_fstatfs("fstatfs", fd, mounted);
}

int fstatfs64(int fd, struct statfs64 *mounted)
{
    return fake_fstatfs("fstatfs64", fd, (struct statfs *)mounted);
}

/* These fail with EACCES if FAKE_CALL names them. */
#define FAILING(result, name, parameters, arguments) \
    result name parameters \
    { \
        result (*real) parameters = dlsym(RTLD_NEXT, #name); \
        const char *call = getenv("FAKE_CALL"); \
        if (call && !strcmp(call, #name)) \
            return errno = EACCES, -1; \
        return real arguments; \
    }
FAILING(ssize_t, send, (int fd, const void *data, size_t size, int flags), (fd, data, size, flags))
FAILING(int, setsockopt, (int fd, int level, int option, const void *value, socklen_t size),
        (fd, level, option, value, size))
FAILING(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags))
"""

PROGRAM = """
import os, socket, sys
import peercred
conn, other = socket.socketpair()
before = sorted(os.listdir("/proc/self/fd"))
try:
    print(eval(sys.argv[1]))
except OSError as error:
    print(type(error).__name__, error.errno)
assert sorted(os.listdir("/proc/self/fd")) == before
"""

LOOK = "os.readlink('exe', dir_fd=(proc := peercred.open_proc(conn))) == os.readlink('/proc/self/exe'), os.close(proc)"
GONE, HIDDEN = f"ProcessLookupError {errno.ESRCH}", f"FileNotFoundError {errno.ENOENT}"


@needs_pidfd
@pytest.mark.parametrize(
    ("fakes", "answer"),
    [
        ({}, "(True, None)"),
        ({"FIRST": "Pid:\t1\n"}, HIDDEN),  # no line of its own
        ({"FIRST": "pos:\t0\n"}, HIDDEN),
        ({"FIRST": ""}, HIDDEN),
        ({"FIRST": "pos:\t0\nPid:\t0\n"}, HIDDEN),
        ({"FIRST": "pos:\t0\nPid:\t-1\n"}, GONE),
        ({"FIRST": "pos:\t0\nPid:\t1\n", "SECOND": "pos:\t0\nPid:\t-1\n"}, GONE),
        ({"FIRST": "pos:\t0\nPid:\t1\n", "SECOND": "pos:\t0\nPid:\t0\n"}, HIDDEN),
        ({"FIRST": "pos:\t0\nPid:\t1\n", "SECOND": "pos:\t0\nPid:\t-1\n", "OPEN": errno.ENOENT}, GONE),
        ({"OPEN": errno.ENOENT}, HIDDEN),
        ({"OPEN": errno.EPERM}, HIDDEN),  # hidepid=1
        ({"OPEN": errno.EACCES}, f"PermissionError {errno.EACCES}"),
        ({"TYPE": "tmpfs"}, HIDDEN),
        ({"TYPE": "fails"}, HIDDEN),
    ],
)
def test_directory(preloaded, fakes, answer):
    """A peer is gone only if the kernel says so, before or after opening.

    Nothing stays open.
    """
    said = preloaded(SHIM, PROGRAM, LOOK, **{f"FAKE_{name}": value for name, value in fakes.items()})
    assert said.strip() == answer


@pytest.mark.parametrize("call", ["send", "setsockopt", "recvmsg"])
def test_overflow_ids_that_cannot_be_asked(preloaded, call):
    """If the kernel refuses a call, there is no list. Nothing stays open."""
    said = preloaded(SHIM, PROGRAM, "peercred.AllowList()", FAKE_CALL=call)
    assert said.strip() == f"PermissionError {errno.EACCES}"
