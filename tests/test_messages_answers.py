"""Stamps and options as this kernel never gives them.

A preloaded library puts them in the place of recvmsg's and setsockopt's.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys

import pytest
from peers import SCM_PIDFD, SCM_SECURITY, SO_PASSPIDFD, needs_pidfd

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* recvmsg(2), but the control data is the bytes of FAKE_CONTROL (in hex); if they are too many, MSG_CTRUNC. With
   FAKE_LATE, SO_PASSCRED is turned on just before, as by another thread. */
ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    ssize_t (*real)(int, struct msghdr *, int) = dlsym(RTLD_NEXT, "recvmsg");
    const char *control = getenv("FAKE_CONTROL");
    size_t i, size = control ? strlen(control) / 2 : 0, room = message->msg_controllen;
    struct cmsghdr *part;
    ssize_t result;

    if (getenv("FAKE_LATE"))
        setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int));
    result = real(fd, message, flags);
    if (!control || result < 0)
        return result;
    if (size > room) {
        size = room;
        message->msg_flags |= MSG_CTRUNC;
    }
    for (i = 0; i < size; i++)
        sscanf(control + 2 * i, "%2hhx", (unsigned char *)message->msg_control + i);
    /* Of one that is cut off the kernel says how much is there. */
    for (i = 0; i + sizeof(struct cmsghdr) <= size; i += CMSG_ALIGN(part->cmsg_len)) {
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
sender.send(b"x")
try:"""

EXPLAIN = """
except OSError as error:
    print(type(error).__name__, error.errno, error)
"""


@pytest.fixture(scope="session")
def shim(preloadable):
    """The library to preload."""
    return preloadable(SHIM)


@pytest.fixture
def run(shim):
    """What a program prints that has a `receiver` and a `sender`."""

    def run(*lines, **fake):
        program = "\n".join([PREPARE, *(f"    {line}" for line in lines), EXPLAIN])
        env = {**os.environ, "LD_PRELOAD": str(shim), **{f"FAKE_{name}": str(value) for name, value in fake.items()}}
        return subprocess.run(
            [sys.executable, "-c", program], env=env, check=True, capture_output=True, text=True
        ).stdout.strip()

    return run


def control(kind, payload):
    """A control message, as it is in memory."""
    message = struct.pack("@Nii", socket.CMSG_LEN(len(payload)), socket.SOL_SOCKET, kind) + payload
    return message.ljust(socket.CMSG_SPACE(len(payload)), b"\0")


CREDS = control(socket.SCM_CREDENTIALS, struct.pack("iII", 7, 8, 9))
WHOLE = ["messages.enable(receiver, label=True)", "print(messages.receive(receiver, 10))"]


def test_the_shim_is_asked(run):
    """The counter-test: a well-formed stamp is believed."""
    assert "cred=Cred(pid=7, uid=8, gid=9), label=None" in run(*WHOLE, CONTROL=CREDS.hex())


def test_control_messages_of_other_levels(run):
    """Control messages of another level are ignored.

    Their numbers look like credentials of root, or a descriptor.
    """
    ip = b"".join(
        control(kind, payload).replace(struct.pack("i", socket.SOL_SOCKET), struct.pack("i", socket.IPPROTO_IP), 1)
        for kind, payload in ((socket.SCM_CREDENTIALS, struct.pack("iII", 1, 0, 0)), (socket.SCM_RIGHTS, bytes(4)))
    )
    lines = [
        "message = messages.receive(receiver, 10, max_fds=5)",
        "print(message.cred, message.fds, os.path.exists('/proc/self/fd/0'))",
    ]
    assert run(WHOLE[0], *lines, CONTROL=(CREDS + ip).hex()) == "Cred(pid=7, uid=8, gid=9) () True"


LABELS = {
    "SELinux ends it by a NUL": (b"system_u:system_r:init_t:s0\0", b"system_u:system_r:init_t:s0"),
    "AppArmor does not": (b"/usr/sbin/cupsd (enforce)", b"/usr/sbin/cupsd (enforce)"),
    "not text": (b"odd name \xc3\xa9\xff (complain)", b"odd name \xc3\xa9\xff (complain)"),
    "one NUL is the end, two are not": (b"label\0\0", b"label\0"),
    "long": (b"y" * 4095 + b"\0", b"y" * 4095),
    "empty": (b"", None),
    "a NUL alone": (b"\0", None),
}


@pytest.mark.parametrize("form", LABELS)
def test_labels(run, form):
    """Labels of SELinux and AppArmor come as they are. An empty one is none."""
    payload, label = LABELS[form]
    answer = run(*WHOLE, CONTROL=(CREDS + control(SCM_SECURITY, payload)).hex())
    assert f"cred=Cred(pid=7, uid=8, gid=9), label={label}, flags=0" in answer


def test_label_that_is_cut_off(run):
    """A label that is cut off is an error."""
    answer = run(*WHOLE, CONTROL=(CREDS + control(SCM_SECURITY, b"y" * 5000)).hex())
    assert answer.startswith(f"OSError {errno.EMSGSIZE} ")


@pytest.mark.parametrize("length", [0, 1, 4, 8, 11, 13, 16])
def test_credentials_of_another_length_are_refused(run, length):
    """A stamp of fewer than 12 bytes, or more, is an error."""
    answer = run(*WHOLE, CONTROL=control(socket.SCM_CREDENTIALS, bytes(length)).hex())
    assert answer.startswith(f"OSError {errno.EMSGSIZE} ")


@pytest.mark.parametrize("ids", [(2**32 - 1, 2**32 - 1), (2**32 - 1, 0), (0, 2**32 - 1)])
@pytest.mark.parametrize("pid", [0, 1])
def test_an_id_of_minus_one_is_nobody(run, ids, pid):
    """A uid or gid of -1 is no sender, whatever stands beside it."""
    payload = struct.pack("iII", pid, *ids)
    assert "cred=None" in run(*WHOLE, CONTROL=control(socket.SCM_CREDENTIALS, payload).hex())


@pytest.mark.parametrize("ids", [(8, 9), (0, 0)])
def test_pid_of_nought_with_ids_is_somebody(run, ids):
    """A pid of 0 beside valid ids is a sender in another PID namespace."""
    answer = run(*WHOLE, CONTROL=control(socket.SCM_CREDENTIALS, struct.pack("iII", 0, *ids)).hex())
    assert f"cred=Cred(pid=None, uid={ids[0]}, gid={ids[1]})" in answer


@needs_pidfd
@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EINVAL, f"ProcessLookupError({errno.ESRCH}, 'the sender is gone"),
        (errno.ESRCH, f"ProcessLookupError({errno.ESRCH}, "),
        (errno.EMFILE, f"OSError({errno.EMFILE}, "),
    ],
)
def test_no_pidfd_and_the_reason(run, number, error):
    """A negative number in the place of a pidfd is its errno.

    EINVAL means a reaped sender, from Linux 6.5 to 6.15.
    """
    stamps = CREDS + control(SCM_PIDFD, struct.pack("i", -number))
    answer = run(
        "messages.enable(receiver, pidfd=True)",
        "message = messages.receive(receiver, 10)",
        "print(message.pidfd, repr(message.pidfd_error))",
        CONTROL=stamps.hex(),
    )
    assert answer.startswith(f"None {error}")


@needs_pidfd
def test_option_that_is_turned_on_meanwhile(run):
    """Credentials without room arrive in part, which is an error.

    The pidfd beside them is closed.
    """
    answer = run(
        "messages.receive(receiver, 10)",
        "messages.enable(receiver, creds=False, pidfd=True)",
        "sender.send(b'y')",
        "before = os.listdir('/proc/self/fd')",
        "try: messages.receive(receiver, 10)",
        "finally: print(os.listdir('/proc/self/fd') == before)",
        LATE=1,
    )
    assert answer.startswith(f"True\nOSError {errno.EMSGSIZE} the kernel had no room".replace("the", "[Errno 90] the"))


ENABLE = [
    "receiver.setsockopt(LEVEL, socket.SO_PASSSEC, 1)",
    "try: messages.enable(receiver, pidfd=True)",
    "finally: print(*(receiver.getsockopt(LEVEL, option) for option in (socket.SO_PASSCRED, socket.SO_PASSSEC)))",
]


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOPROTOOPT, f"UnsupportedError {errno.ENOPROTOOPT} "), (errno.EACCES, f"PermissionError {errno.EACCES} ")],
)
def test_enable_is_all_or_nothing(run, number, error):
    """If one option is refused, the others are as before.

    The error names it.
    """
    state, answer = run(*ENABLE, OPTION=SO_PASSPIDFD, ERRNO=number).splitlines()
    assert state == "0 1"
    assert answer.startswith(error)
    assert "SO_PASSPIDFD" in answer
    assert "SO_PASSRIGHTS" not in answer  # which nobody needs


def test_kernel_without_pidfds(run):
    """A kernel without SO_PASSPIDFD works if nobody asks for pidfds."""
    answer = run(
        "messages.enable(receiver)",
        "sender.send(b'y')",
        "messages.receive(receiver, 10)",
        "print(messages.receive(receiver, 10).cred.uid)",
        NO_OPTION=SO_PASSPIDFD,
        ERRNO=errno.ENOPROTOOPT,
    )
    assert answer == str(os.getuid())


def test_options_that_cannot_be_asked(run):
    """If the kernel does not say which options are on, it is an error.

    Not knowing is not "off".
    """
    answer = run("messages.receive(receiver, 10)", NO_OPTION=SO_PASSPIDFD, ERRNO=errno.EACCES)
    assert answer.startswith(f"PermissionError {errno.EACCES} ")
