"""Messages that this kernel never delivers, by a preloaded library.

It stands below the package, in the place of libc's recvmsg().
"""

from __future__ import annotations

# What labels look like in the kernel, and here.
FORMS = {
    "SELinux ends it by a NUL": (b"system_u:system_r:init_t:s0\0", b"system_u:system_r:init_t:s0"),
    "AppArmor does not": (b"/usr/sbin/cupsd (enforce)", b"/usr/sbin/cupsd (enforce)"),
    "not text": (b"odd name \xc3\xa9\xff (complain)", b"odd name \xc3\xa9\xff (complain)"),
    "one NUL is the end, two are not": (b"label\0\0", b"label\0"),
}

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* recvmsg(2), but of FAKE_RECEIVER, or of all sockets, the control data is the bytes of FAKE_CONTROL (in hex); if they
   are too many, MSG_CTRUNC. FAKE_FLAGS come too. With FAKE_MORE, so many bytes more are said to be there. FAKE_SHOW
   prints the room for control data. With FAKE_LATE, SO_PASSCRED is turned on just before, as by another thread. */
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
    memset(message->msg_control, 0xff, room);
    for (i = 0; i < size; i++)
        sscanf(control + 2 * i, "%2hhx", (unsigned char *)message->msg_control + i);
    /* Of one that is cut off the kernel says how much is there. */
    for (i = 0; !getenv("FAKE_RAW") && i + sizeof(struct cmsghdr) <= size; i += CMSG_ALIGN(part->cmsg_len)) {
        part = (struct cmsghdr *)((char *)message->msg_control + i);
        if (part->cmsg_len > size - i)
            part->cmsg_len = size - i;
    }
    message->msg_controllen = size + (getenv("FAKE_MORE") ? atoi(getenv("FAKE_MORE")) : 0);
    return result;
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
