"""Answers that this kernel never gives, by a preloaded library.

It stands below the package, in the place of libc's recvmsg(), setsockopt() and
getsockopt().
"""

from __future__ import annotations

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* recvmsg(2), but of FAKE_RECEIVER, or of all sockets, the control data is the bytes of FAKE_CONTROL (in hex); if they
   are too many, MSG_CTRUNC. FAKE_FLAGS come too. FAKE_SHOW prints the room for control data. With FAKE_LATE,
   SO_PASSCRED is turned on just before, as by another thread. */
ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    ssize_t (*real)(int, struct msghdr *, int) = dlsym(RTLD_NEXT, "recvmsg");
    const char *control = getenv("FAKE_CONTROL");
    size_t i, size = control ? strlen(control) / 2 : 0, room = message->msg_controllen;
    struct cmsghdr *part;
    ssize_t result;

    if (getenv("FAKE_RECEIVER") && fd != atoi(getenv("FAKE_RECEIVER")))
        return real(fd, message, flags);
    if (getenv("FAKE_SHOW"))
        dprintf(1, "%zu\n", message->msg_controllen);
    if (getenv("FAKE_LATE"))
        setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int));
    result = real(fd, message, flags);
    if (!control || result < 0)
        return result;
    if (getenv("FAKE_FLAGS"))
        message->msg_flags |= atoi(getenv("FAKE_FLAGS"));
    if (size > room) {
        size = room;
        message->msg_flags |= MSG_CTRUNC;
    }
    for (i = 0; i < size; i++)
        sscanf(control + 2 * i, "%2hhx", (unsigned char *)message->msg_control + i);
    /* Of one that is cut off the kernel says how much is there. */
    for (i = 0; !getenv("FAKE_RAW") && i + sizeof(struct cmsghdr) <= size; i += CMSG_ALIGN(part->cmsg_len)) {
        part = (struct cmsghdr *)((char *)message->msg_control + i);
        if (part->cmsg_len > size - i)
            part->cmsg_len = size - i;
    }
    message->msg_controllen = size;
    return result;
}

/* setsockopt(2), but switching FAKE_OPTION on fails with FAKE_ERRNO. */
int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
    int (*real)(int, int, int, const void *, socklen_t) = dlsym(RTLD_NEXT, "setsockopt");
    const char *fake = getenv("FAKE_OPTION");

    if (fake && level == SOL_SOCKET && option == atoi(fake) && *(const int *)value)
        return errno = atoi(getenv("FAKE_ERRNO")), -1;
    return real(fd, level, option, value, length);
}

/* getsockopt(2), but with FAKE_NO_OPTION the kernel has no such option. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");
    const char *fake = getenv("FAKE_NO_OPTION");

    if (fake && level == SOL_SOCKET && option == atoi(fake))
        return errno = atoi(getenv("FAKE_ERRNO")), -1;
    return real(fd, level, option, value, length);
}
"""

PREPARE = """
import os
import socket
from peercred import messages
LEVEL = socket.SOL_SOCKET
receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
os.environ["FAKE_RECEIVER"] = str(receiver.fileno())
def opened(): return set(map(int, os.listdir("/proc/self/fd")))
sender.send(b"x")
try:"""

EXPLAIN = """
except OSError as error:
    print(type(error).__name__, error.errno, error)
"""
