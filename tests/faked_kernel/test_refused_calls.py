"""System calls that the kernel refuses, or pretends to have done.

A sandbox does that (seccomp(2)).
"""

from __future__ import annotations

import errno
import os
import resource
import socket

import pytest
from peers import SO_PASSPIDFD, SO_PEERGROUPS, SO_PEERPIDFD, call, outcome
from questions import QUESTIONS
from seccomp import needs_seccomp, option, refuse

import peercred
from peercred import AllowList, messages

pytestmark = needs_seccomp

F_DUPFD_CLOEXEC = 1030
GROUP = 2**32 - 2  # which nobody is in


def by_group(conn):
    return AllowList(gids={GROUP}).require(conn)


def by_uid(conn):
    return AllowList(uids={os.geteuid()}).require(conn)


FUNCTIONS = [*(question.function for question in QUESTIONS), by_uid, by_group]


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


ASKED = [(question.function, question.option, question.number) for question in QUESTIONS]
ASKED += [(by_uid, "SO_PEERCRED", socket.SO_PEERCRED), (by_group, "SO_PEERCRED", socket.SO_PEERCRED)]


@pytest.mark.parametrize(("function", "name", "number"), [*ASKED, (by_group, "SO_PEERGROUPS", SO_PEERGROUPS)])
@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOMEM, errno.ENOPROTOOPT])
def test_refused_option(pair, function, name, number, error):
    """The error names the option that is refused, or that the kernel lacks.

    EPERM is the smallest errno: -1 must never be taken for an answer.
    """
    kind, found, text = said(function, pair[0], "getsockopt", error, option(number))
    if error == errno.ENOPROTOOPT:
        assert (kind, found) == (peercred.UnsupportedError, error)
        assert text.endswith(f"does not support {name}")
    else:
        assert (kind, found) == (type(OSError(error, "")), error)
        assert text.endswith(f"{name} of descriptor {pair[0].fileno()}")


@pytest.mark.parametrize("function", [peercred.open_pidfd, peercred.open_proc])
def test_peer_that_is_gone_or_no_room_for_it(pair, function):
    """A peer that is gone and a full table are told apart.

    From Linux 6.5 to 6.15, EINVAL means that the peer is gone.
    """
    for error, kind, number in (
        (errno.EINVAL, ProcessLookupError, errno.ESRCH),
        (errno.EMFILE, OSError, errno.EMFILE),
    ):
        assert said(function, pair[0], "getsockopt", error, option(SO_PEERPIDFD))[:2] == (kind, number)


def test_groups_count_only_if_they_decide(pair):
    """A failure of SO_PEERGROUPS counts only if the groups had to decide."""

    def child():
        lists = [AllowList(uids={own}, gids={GROUP}), AllowList(uids={own + 1}), AllowList({own + 1}, {GROUP})]
        refuse("getsockopt", errno.ENOPROTOOPT, option(SO_PEERGROUPS))
        return [outcome(allowed.require, pair[0]) for allowed in lists]

    own = os.geteuid()
    admitted, refused, unknown = call(child)
    assert admitted.uid == own
    assert refused == (peercred.NotAllowedError, errno.EACCES)
    assert unknown == (peercred.UnsupportedError, errno.ENOPROTOOPT)


@pytest.mark.parametrize("refused", [socket.SO_DOMAIN, socket.SO_TYPE, socket.SO_ACCEPTCONN])
def test_no_word_on_why_there_is_no_peer(refused):
    """There is no peer, even if the reason cannot be looked up.

    The socket may have been closed meanwhile.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        assert said(peercred.read, sock, "getsockopt", errno.EBADF, option(refused))[:2] == (
            peercred.NoPeerError,
            errno.ENOTCONN,
        )


def test_no_word_on_the_family():
    """A TCP connection is no Unix socket, even if its family is not told."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        assert said(peercred.read, sock, "getsockopt", errno.EPERM, option(socket.SO_DOMAIN))[:2] == (
            peercred.NoPeerError,
            errno.EAFNOSUPPORT,
        )


@pytest.mark.parametrize("refused", [socket.SO_PASSCRED, SO_PASSPIDFD])
def test_no_word_on_what_comes_with_a_message(pair, refused):
    """receive() fails if it cannot learn what is enabled.

    Not knowing is not "off".
    """
    pair[1].send(b"x")
    failure = said(lambda sock: messages.receive(sock, 1), pair[0], "getsockopt", errno.EPERM, option(refused))
    assert failure[:2] == (PermissionError, errno.EPERM)


@pytest.mark.parametrize(("function", "name", "number"), ASKED)
@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOPROTOOPT])
def test_refused_option_of_a_socket_without_a_peer(function, name, number, error):
    """A socket without a peer is told to be one, whatever else is refused."""
    with socket.socket(socket.AF_UNIX) as sock:
        kind, found, _ = said(function, sock, "getsockopt", error, option(number))
    assert (kind, found) == (peercred.NoPeerError, errno.ENOTCONN)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EINVAL])
def test_refused_getpeername(pair, function, number):
    """The error names getpeername(2), whatever was asked.

    EINVAL of it does not mean that the peer is gone.
    """
    kind, found, text = said(function, pair[0], "getpeername", number)
    assert (kind, found) == (type(OSError(number, "")), number)
    assert text.endswith(f"getpeername(2) of descriptor {pair[0].fileno()}")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_refused_type(pair, function):
    """The error names SO_TYPE, which decides if the peer has an address."""
    pair[1].bind("")
    kind, number, text = said(function, pair[0], "getsockopt", errno.EPERM, option(socket.SO_TYPE))
    assert (kind, number) == (PermissionError, errno.EPERM)
    assert text.endswith(f"SO_TYPE of descriptor {pair[0].fileno()}")


def test_refused_duplicate(pair):
    """The error of a list with groups names the duplicate that is refused."""
    kind, number, text = said(by_group, pair[0], "fcntl", errno.EPERM, (1, F_DUPFD_CLOEXEC))
    assert (kind, number) == (PermissionError, errno.EPERM)
    assert text.endswith(f"F_DUPFD_CLOEXEC of descriptor {pair[0].fileno()}")


@pytest.mark.parametrize(
    "function", [lambda sock: messages.enable(sock, pidfd=True), lambda sock: messages.send(sock, b"x")]
)
def test_refused_family(pair, function):
    """The error of a question about messages names SO_DOMAIN."""
    kind, number, text = said(function, pair[0], "getsockopt", errno.EPERM, option(socket.SO_DOMAIN))
    assert (kind, number) == (PermissionError, errno.EPERM)
    assert text.endswith(f"SO_DOMAIN of descriptor {pair[0].fileno()}")


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


@pytest.mark.parametrize("function", FUNCTIONS)
def test_getpeername_that_only_seems_to_succeed(pair, function):
    """Without an address that the kernel has written, there is no answer."""
    kind, number, text = said(function, pair[0], "getpeername", 0)
    assert (kind, number) == (OSError, errno.EPROTO)
    assert text.endswith(f"getpeername(2) of descriptor {pair[0].fileno()}")


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
