"""System calls that the kernel refuses, or pretends to have done.

A sandbox does that (seccomp(2)).
"""

from __future__ import annotations

import errno
import os
import resource
import socket

import pytest
from peers import SO_PEERGROUPS, call, outcome
from questions import QUESTIONS
from seccomp import needs_seccomp, refuse

import peercred
from peercred import AllowList, messages

F_DUPFD_CLOEXEC = 1030
GROUP = 2**32 - 2  # which nobody is in


def by_group(conn):
    return AllowList(gids={GROUP}).require(conn)


FUNCTIONS = [*(question.function for question in QUESTIONS), by_group]


def said(function, conn, *refused):
    """The error of a function where a call is refused, in a child."""

    def child():
        AllowList(gids={GROUP})  # what it needs from /proc is asked before
        refuse(*refused)
        try:
            return function(conn)
        except OSError as error:
            return type(error), error.errno, str(error)

    return call(child)


def option(number):
    """The argument of getsockopt(2) that is an option."""
    return 2, int(number)


@needs_seccomp
@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_refused_option(pair, question):
    """The error names the option that is refused."""
    kind, number, text = said(question.function, pair[0], "getsockopt", errno.EPERM, option(question.number))
    assert (kind, number) == (PermissionError, errno.EPERM)
    assert f"{question.option} of descriptor {pair[0].fileno()}" in text


@needs_seccomp
@pytest.mark.parametrize(
    ("function", "refused"),
    [*((question.function, question.number) for question in QUESTIONS), (by_group, socket.SO_PEERCRED)],
)
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOPROTOOPT])
def test_refused_option_of_a_socket_without_a_peer(function, refused, number):
    """A socket without a peer is told to be one, whatever else is refused."""
    with socket.socket(socket.AF_UNIX) as sock:
        kind, found, _ = said(function, sock, "getsockopt", number, option(refused))
    assert (kind, found) == (peercred.NoPeerError, errno.ENOTCONN)


@needs_seccomp
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EINVAL])
def test_refused_getpeername(pair, function, number):
    """The error names getpeername(2), whatever was asked.

    EINVAL of it does not mean that the peer is gone.
    """
    kind, found, text = said(function, pair[0], "getpeername", number)
    assert (kind, found) == (type(OSError(number, "")), number)
    assert text.endswith(f"getpeername(2) of descriptor {pair[0].fileno()}")


@needs_seccomp
@pytest.mark.parametrize("function", FUNCTIONS)
def test_refused_type(pair, function):
    """The error names SO_TYPE, which decides if the peer has an address."""
    pair[1].bind("")
    kind, number, text = said(function, pair[0], "getsockopt", errno.EPERM, option(socket.SO_TYPE))
    assert (kind, number) == (PermissionError, errno.EPERM)
    assert text.endswith(f"SO_TYPE of descriptor {pair[0].fileno()}")


@needs_seccomp
def test_refused_duplicate(pair):
    """The error of a list with groups names the duplicate that is refused."""
    kind, number, text = said(by_group, pair[0], "fcntl", errno.EPERM, (1, F_DUPFD_CLOEXEC))
    assert (kind, number) == (PermissionError, errno.EPERM)
    assert text.endswith(f"F_DUPFD_CLOEXEC of descriptor {pair[0].fileno()}")


@needs_seccomp
@pytest.mark.parametrize(
    "function", [lambda sock: messages.enable(sock, pidfd=True), lambda sock: messages.send(sock, b"x")]
)
def test_refused_family(pair, function):
    """The error of a question about messages names SO_DOMAIN."""
    kind, number, text = said(function, pair[0], "getsockopt", errno.EPERM, option(socket.SO_DOMAIN))
    assert (kind, number) == (PermissionError, errno.EPERM)
    assert text.endswith(f"SO_DOMAIN of descriptor {pair[0].fileno()}")


@needs_seccomp
@pytest.mark.parametrize("question", QUESTIONS, ids=str)
@pytest.mark.parametrize("connected", [True, False])
def test_option_that_only_seems_to_succeed(pair, question, connected):
    """An answer that the kernel has not written is none: EPROTO.

    A socket without a peer is still told to be one.
    """
    with socket.socket(socket.AF_UNIX) as lonely:
        conn = pair[0] if connected else lonely
        kind, found, text = said(question.function, conn, "getsockopt", 0, option(question.number))
        expected = (OSError, errno.EPROTO) if connected else (peercred.NoPeerError, errno.ENOTCONN)
        assert (kind, found) == expected
        assert connected == text.endswith(f"{question.option} of descriptor {conn.fileno()}")


@needs_seccomp
@pytest.mark.parametrize("refused", [option(socket.SO_PEERCRED), option(SO_PEERGROUPS), None])
def test_groups_that_only_seem_to_be_read(pair, refused):
    """A list with groups lets nobody in by an answer that is not written.

    Not even if it lists every group that there can be.
    """
    everyone = AllowList(gids=range(2**32 - 1))
    kind, number, _ = said(AllowList(gids={GROUP}).require, pair[0], "getsockopt", 0, refused)
    assert (kind, number) == (OSError, errno.EPROTO)
    if refused != option(SO_PEERGROUPS):  # otherwise the primary group is a real one
        assert said(everyone.require, pair[0], "getsockopt", 0, refused)[:2] == (OSError, errno.EPROTO)


@needs_seccomp
@pytest.mark.parametrize("function", FUNCTIONS)
def test_getpeername_that_only_seems_to_succeed(pair, function):
    """Without an address that the kernel has written, there is no answer."""
    kind, number, text = said(function, pair[0], "getpeername", 0)
    assert (kind, number) == (OSError, errno.EPROTO)
    assert text.endswith(f"getpeername(2) of descriptor {pair[0].fileno()}")


@needs_seccomp
@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_descriptor_is_left(pair, function):
    """A pidfd without word on the connection is closed."""

    def child():
        AllowList(gids={GROUP})  # what it needs from /proc is asked before
        refuse("getpeername", errno.EPERM)
        before = os.listdir("/proc/self/fd")
        failure = outcome(function, pair[0])
        return failure, os.listdir("/proc/self/fd") == before

    assert call(child) == ((PermissionError, errno.EPERM), True)


@pytest.mark.parametrize("limit", [0, 3])
def test_no_number_is_allowed(pair, limit):
    """A process that may open nothing has a full table: EMFILE."""
    allowed = AllowList(gids={GROUP})
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        refused = outcome(allowed.require, pair[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert refused == (OSError, errno.EMFILE)
