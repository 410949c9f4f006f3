"""Connections about which the kernel says what this one never does.

A preloaded library puts these answers in the place of getsockopt's, below the
package.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import struct
import subprocess
import sys

import pytest
from peers import SO_PEERGROUPS, SO_PEERPIDFD, run_python
from questions import QUESTIONS

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* getsockopt(2), but FAKE_OPTION answers the bytes of FAKE_ANSWER (in hex), or fails with FAKE_ERRNO. Too small a
   buffer is ERANGE and the size, but for SO_PEERCRED, which is cut off; with FAKE_GROWTH the size is never enough.
   FAKE_LENGTH is a lie about the length. And if the interpreter's lock is not held, EDEADLK is the answer. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *length)
{
    int (*real)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");
    const char *answer = getenv("FAKE_ANSWER"), *error = getenv("FAKE_ERRNO");
    int (*held)(void) = dlsym(RTLD_DEFAULT, "PyGILState_Check"); /* which PyPy lacks */
    socklen_t i, size = answer ? strlen(answer) / 2 : 0;

    if (level != SOL_SOCKET || option != atoi(getenv("FAKE_OPTION")))
        return real(fd, level, option, value, length);
    if (held && !held())
        return errno = EDEADLK, -1;
    if (error)
        return errno = atoi(error), -1;
    if (getenv("FAKE_GROWTH"))
        size = *length + atoi(getenv("FAKE_GROWTH"));
    if (size > *length && option != SO_PEERCRED)
        return *length = size, errno = ERANGE, -1;
    for (i = 0; i < size && i < *length; i++)
        sscanf(answer + 2 * i, "%2hhx", (unsigned char *)value + i);
    *length = getenv("FAKE_LENGTH") ? atoi(getenv("FAKE_LENGTH")) : size;
    return 0;
}

/* getpeername(2), but it fails with FAKE_PEERNAME_ERRNO. */
int getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
    int (*real)(int, struct sockaddr *, socklen_t *) = dlsym(RTLD_NEXT, "getpeername");
    const char *error = getenv("FAKE_PEERNAME_ERRNO");

    return error ? (errno = atoi(error), -1) : real(fd, address, length);
}
"""


@pytest.fixture
def environment(preloadable):
    """The environment of a process for which the option answers so."""

    def environment(option, answer=b"", error=None, growth=None, length=None, peername_errno=None):
        env = {
            **os.environ,
            "LD_PRELOAD": str(preloadable(SHIM)),
            "FAKE_OPTION": str(int(option)),
            "FAKE_ANSWER": answer.hex(),
        }
        fakes = {"ERRNO": error, "GROWTH": growth, "LENGTH": length, "PEERNAME_ERRNO": peername_errno}
        for name, value in fakes.items():
            if value is not None:
                env[f"FAKE_{name}"] = str(value)
        return env

    return environment


@pytest.fixture
def ask(environment):
    """What a function of peercred answers of a good connection.

    The option gives such an answer.
    """

    def ask(function, option, *answer, connected=True, **fake):
        program = f"""
import socket, peercred
conn, other = socket.socketpair() if {bool(connected)} else (socket.socket(socket.AF_UNIX), None)
if {connected!r} == "to an address":
    other.bind("")
try:
    print(peercred.{function}(conn))
except OSError as error:
    print(type(error).__name__, error.errno, error)
"""
        return run_python(program, env=environment(option, *answer, **fake)).strip()

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


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_kernel_without_the_option(ask, question):
    """A kernel without an option is "unsupported", and the error names it."""
    answer = ask(question, question.number, error=errno.ENOPROTOOPT)
    assert answer.startswith(f"UnsupportedError {errno.ENOPROTOOPT} ")
    assert question.option in answer


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOMEM, errno.EINVAL])
def test_other_errors_come_out(ask, error):
    """Every other errno is an OSError of that errno."""
    answer = ask("read", socket.SO_PEERCRED, error=error)
    assert answer.startswith(f"{type(OSError(error, '')).__name__} {error} ")


@pytest.mark.parametrize("function", [*map(str, QUESTIONS), f"AllowList(uids={{{os.geteuid()}}}).require"])
def test_no_word_on_the_connection_is_no_permission(ask, function):
    """Without word on the connection there is no answer, and no pidfd."""
    answer = ask(function, socket.SO_ACCEPTCONN, peername_errno=errno.EACCES)
    assert answer.startswith(f"PermissionError {errno.EACCES} ")


@pytest.mark.parametrize("type_", [b"", bytes(3), struct.pack("i", -1)])
def test_no_word_on_the_type_is_no_permission(ask, type_):
    """A peer with an address is refused if the socket's type is not known."""
    answer = ask("read", socket.SO_TYPE, type_, connected="to an address")
    assert answer.startswith(f"OSError {errno.EPROTO} ")


@pytest.mark.parametrize("option", [socket.SO_DOMAIN, socket.SO_TYPE, socket.SO_ACCEPTCONN])
def test_no_word_on_why_there_is_no_peer(ask, option):
    """There is no peer, even if the reason cannot be looked up.

    The socket may have been closed meanwhile.
    """
    answer = ask("read", option, error=errno.EBADF, connected=False)
    assert answer.startswith(f"NoPeerError {errno.ENOTCONN} ")


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
    "selinux": (b"system_u:system_r:init_t:s0\0", b"system_u:system_r:init_t:s0"),
    "selinux, categories": (b"staff_u:staff_r:staff_t:s0-s0:c0.c1023\0", b"staff_u:staff_r:staff_t:s0-s0:c0.c1023"),
    "apparmor": (b"/usr/sbin/cupsd (enforce)", b"/usr/sbin/cupsd (enforce)"),
    "apparmor, unconfined": (b"unconfined", b"unconfined"),
    "not text": (b"odd name \xc3\xa9\xff (complain)", b"odd name \xc3\xa9\xff (complain)"),
    "one NUL is the end, two are not": (b"label\0\0", b"label\0"),
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
    answer = ask("read_label", socket.SO_PEERSEC, b"system_u:object_r:unlabeled_t:s0\0", connected=False)
    assert answer.startswith(f"NoPeerError {errno.ENOTCONN} ")


@pytest.mark.parametrize("function", ["open_pidfd", "open_proc"])
def test_pidfd_outcomes_are_three(ask, function):
    """Old kernel, peer gone and full table are told apart.

    Kernels before 6.5, and from 6.5 to 6.15, say them so.
    """
    kinds = {
        errno.ENOPROTOOPT: f"UnsupportedError {errno.ENOPROTOOPT} ",
        errno.EINVAL: f"ProcessLookupError {errno.ESRCH} ",
        errno.EMFILE: f"OSError {errno.EMFILE} ",
    }
    for error, expected in kinds.items():
        assert ask(function, SO_PEERPIDFD, error=error).startswith(expected)


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_old_kernel_without_a_peer(ask, question):
    """A socket without a peer is told so by an old kernel too.

    That kernel says only that it lacks the option.
    """
    answer = ask(question, question.number, error=errno.ENOPROTOOPT, connected=False)
    assert answer.startswith(f"NoPeerError {errno.ENOTCONN} ")


@pytest.mark.parametrize("length", [0, 1, 3])
def test_pidfd_cut_off_is_refused(ask, length):
    """Fewer bytes than an int are no descriptor, and none is closed."""
    assert ask("open_pidfd", SO_PEERPIDFD, bytes(length)).startswith(f"OSError {errno.EPROTO} ")


def test_groups_are_asked_for_only_if_they_decide(ask):
    """A failure of SO_PEERGROUPS counts only if the groups had to decide."""

    def require(**ids):
        return ask(f"AllowList(**{ids}).require", SO_PEERGROUPS, error=errno.ENOPROTOOPT)

    own, other = os.geteuid(), os.geteuid() + 1
    assert require(uids={own}, gids={other}).startswith("Cred(")
    assert require(uids={other}).startswith(f"NotAllowedError {errno.EACCES} ")
    assert require(uids={other}, gids={2**32 - 2}).startswith(f"UnsupportedError {errno.ENOPROTOOPT} ")


@pytest.mark.parametrize("number", [-1, -24, -(2**31)])
def test_negative_pidfd_is_refused(ask, number):
    """A negative number is no descriptor."""
    assert ask("open_pidfd", SO_PEERPIDFD, struct.pack("i", number)).startswith(f"OSError {errno.EPROTO} ")


@pytest.mark.parametrize(("error", "alive"), [(errno.ENOPROTOOPT, None), (errno.EINVAL, False)])
def test_command_without_a_pidfd(environment, error, alive):
    """The command names no program if the kernel gives no pidfd."""
    env = environment(SO_PEERPIDFD, error=error)
    result = subprocess.run([sys.executable, "-m", "peercred", "--json"], env=env, check=True, capture_output=True)
    peer = json.loads(result.stdout)
    assert (peer["program"], peer["command"], peer["alive"]) == (None, None, alive)
    assert peer["uid"] == os.geteuid()


def test_command_that_gets_no_answer(environment):
    """Every other error ends the command with one line, and exit code 1."""
    env = environment(SO_PEERPIDFD, error=errno.EMFILE)
    command = [sys.executable, "-m", "peercred", "--json"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"peercred: Too many open files: SO_PEERPIDFD of descriptor \d+\n", result.stderr)
