"""Connections about which the kernel says what this one never does.

A preloaded library puts these answers in the place of getsockopt's, below the
package.
"""

from __future__ import annotations

import errno
import socket
import struct

import pytest
from faked import FORMS
from peers import SO_PEERGROUPS, SO_PEERPIDFD

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* getsockopt(2), but FAKE_OPTION answers the bytes of FAKE_ANSWER (in hex), and SO_PEERCRED so only of a socket with a
   peer. Too small a buffer is ERANGE and the size, but for SO_PEERCRED, which is cut off; with FAKE_GROWTH the size is
   never enough. FAKE_LENGTH is a lie about the length. And if the interpreter's lock is not held, EDEADLK is the
   answer. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");
    const char *answer = getenv("FAKE_ANSWER");
    int (*held)(void) = dlsym(RTLD_DEFAULT, "PyGILState_Check"); /* which PyPy lacks */
    socklen_t i, size = answer ? strlen(answer) / 2 : 0;
    struct sockaddr peer;

    if (option == SO_PEERCRED && getpeername(fd, &peer, &(socklen_t){sizeof peer}) != 0)
        return real(fd, level, option, value, length);
    if (level != SOL_SOCKET || option != atoi(getenv("FAKE_OPTION")))
        return real(fd, level, option, value, length);
    if (held && !held())
        return errno = EDEADLK, -1;
    if (getenv("FAKE_GROWTH"))
        size = *length + atoi(getenv("FAKE_GROWTH"));
    if (size > *length && option != SO_PEERCRED)
        return *length = size, errno = ERANGE, -1;
    for (i = 0; i < size && i < *length; i++)
        sscanf(answer + 2 * i, "%2hhx", (unsigned char *)value + i);
    *length = getenv("FAKE_LENGTH") ? atoi(getenv("FAKE_LENGTH")) : size;
    return 0;
}
"""


PROGRAM = """
import socket, sys
import peercred
function, connected = sys.argv[1:]
conn, other = (socket.socket(socket.AF_UNIX), None) if connected == "no" else socket.socketpair()
if connected == "to an address":
    other.bind("")
try:
    print(eval(f"peercred.{function}")(conn))
except OSError as error:
    print(type(error).__name__, error.errno, error)
"""


@pytest.fixture
def ask(preloaded):
    """What a function of peercred answers of a good connection.

    The option gives such an answer.
    """

    def ask(function, option, answer, connected="yes", **fakes):
        env = {f"FAKE_{name.upper()}": value for name, value in fakes.items()}
        return preloaded(
            SHIM, PROGRAM, function, connected, FAKE_OPTION=int(option), FAKE_ANSWER=answer.hex(), **env
        ).strip()

    return ask


def test_the_shim_is_asked(ask):
    """The counter-test: a well-formed answer is believed.

    The library also checks that the lock of the interpreter is held.
    """
    answer = ask("read", socket.SO_PEERCRED, struct.pack("iII", 7, 8, 9))
    assert answer == "Cred(pid=7, uid=8, gid=9)"


@pytest.mark.parametrize("length", [0, 4, 8, 11, 13, 16])
def test_credentials_of_another_length_are_refused(ask, length):
    """Fewer than 12 bytes, or more, are no struct ucred.

    Zeroes must not turn into root.
    """
    assert ask("read", socket.SO_PEERCRED, bytes(length)).startswith(f"OSError {errno.EPROTO} ")


def test_what_the_kernel_leaves_unwritten_is_nobody(ask):
    """Bytes that the kernel does not write are nobody's, and not root's."""
    for written in (bytes(4), bytes(8)):
        answer = ask("read", socket.SO_PEERCRED, written, length=12)
        assert answer.startswith(f"NoPeerError {errno.ENOTCONN} ")


@pytest.mark.parametrize("pid", [-1, -errno.EPERM, -(2**31)])
def test_negative_pid_is_refused(ask, pid):
    """A pid below 0 is no answer, and is not taken for an errno."""
    answer = ask("read", socket.SO_PEERCRED, struct.pack("iII", pid, 0, 0))
    assert answer.startswith(f"OSError {errno.EPROTO} ")


@pytest.mark.parametrize("length", [260, 2**18 + 4, 2**31 - 4, -4])
def test_longer_than_the_buffer_is_refused(ask, length):
    """A length beyond the buffer's is refused, and nothing is read there."""
    assert ask("read_groups", SO_PEERGROUPS, gids(1), length=length).startswith(f"OSError {errno.EPROTO} ")
    assert ask("read_label", socket.SO_PEERSEC, b"label", length=length).startswith(f"OSError {errno.EPROTO} ")


@pytest.mark.parametrize("ids", [(2**32 - 1, 2**32 - 1), (2**32 - 1, 0), (0, 2**32 - 1)])
@pytest.mark.parametrize("pid", [0, 1])
def test_an_id_of_minus_one_is_nobody(ask, ids, pid):
    """A uid or gid of -1 is no identity, whatever stands beside it."""
    assert ask("read", socket.SO_PEERCRED, struct.pack("iII", pid, *ids)).startswith(f"NoPeerError {errno.ENOTCONN} ")


@pytest.mark.parametrize("type_", [b"", bytes(3), struct.pack("i", -1)])
def test_no_word_on_the_type_is_no_permission(ask, type_):
    """A peer with an address is refused if the socket's type is not known."""
    answer = ask("read", socket.SO_TYPE, type_, connected="to an address")
    assert answer.startswith(f"OSError {errno.EPROTO} ")


def gids(*numbers):
    return struct.pack(f"{len(numbers)}I", *numbers)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 10_000])
def test_groups_of_any_number(ask, count):
    """Groups come in the kernel's order with duplicates, in any number."""
    numbers = [*range(2**32 - 2, 2**32 - 2 - count // 2, -1), *[5] * (count - count // 2)]
    assert ask("read_groups", SO_PEERGROUPS, gids(*numbers)) == repr(tuple(numbers))


@pytest.mark.parametrize("length", [1, 3, 5, 7])
def test_groups_of_odd_length_are_refused(ask, length):
    """Bytes that are no whole number of gids are refused."""
    assert ask("read_groups", SO_PEERGROUPS, bytes(length)).startswith(f"OSError {errno.EPROTO} ")


@pytest.mark.parametrize("function", ["read_groups", "read_label"])
@pytest.mark.parametrize("growth", [-4, 0, 4, 4096])
def test_size_that_is_never_right_ends(ask, function, growth):
    """A size that changes with each call ends in an error or an answer."""
    option = SO_PEERGROUPS if function == "read_groups" else socket.SO_PEERSEC
    answer = ask(function, option, b"A" * 8192, growth=growth)
    assert answer.startswith(f"OSError {errno.ERANGE} ") == (growth > 0)


LABELS = {
    **FORMS,
    "selinux, categories": (b"staff_u:staff_r:staff_t:s0-s0:c0.c1023\0", b"staff_u:staff_r:staff_t:s0-s0:c0.c1023"),
    "apparmor, unconfined": (b"unconfined", b"unconfined"),
    "of a buffer's length": (b"x" * 256, b"x" * 256),
    "of a buffer's length and a NUL": (b"x" * 256 + b"\0", b"x" * 256),
    "long": (b"y" * 60_000 + b"\0", b"y" * 60_000),
}


@pytest.mark.parametrize("form", LABELS)
def test_labels(ask, form):
    """Labels of SELinux and AppArmor come as they are, of any length."""
    answer, label = LABELS[form]
    assert ask("read_label", socket.SO_PEERSEC, answer) == repr(label)


@pytest.mark.parametrize("answer", [b"", b"\0"])
def test_empty_label_is_an_error(ask, answer):
    """An empty label is an error."""
    assert ask("read_label", socket.SO_PEERSEC, answer).startswith(f"OSError {errno.ENODATA} ")


def test_label_of_a_socket_without_a_peer_is_an_error(ask):
    """SELinux's `unlabeled`, of a socket without a peer, is an error."""
    answer = ask("read_label", socket.SO_PEERSEC, b"system_u:object_r:unlabeled_t:s0\0", connected="no")
    assert answer.startswith(f"NoPeerError {errno.ENOTCONN} ")


@pytest.mark.parametrize("length", [0, 1, 3])
def test_pidfd_cut_off_is_refused(ask, length):
    """Fewer bytes than an int are no descriptor, and none is closed."""
    assert ask("open_pidfd", SO_PEERPIDFD, bytes(length)).startswith(f"OSError {errno.EPROTO} ")


@pytest.mark.parametrize("number", [-1, -24, -(2**31)])
def test_negative_pidfd_is_refused(ask, number):
    """A negative number is no descriptor."""
    assert ask("open_pidfd", SO_PEERPIDFD, struct.pack("i", number)).startswith(f"OSError {errno.EPROTO} ")
