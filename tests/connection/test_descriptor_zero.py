"""If standard input is closed, the next descriptor is 0, like any other."""

from __future__ import annotations

import os
import socket

import pytest
from peers import call, fdinfo, is_open, needs_pidfd
from questions import OPENING, myself

import peercred
from peercred import messages


def without_standard_input(function):
    """What it returns in a process whose descriptor 0 is free."""
    return call(lambda: os.close(0) or function())


def test_socket():
    """A socket with the number 0 is asked like any other."""

    def ask():
        ours, theirs = socket.socketpair()
        with ours, theirs:
            return ours.fileno(), peercred.read(0).pid == peercred.read(ours).pid == os.getpid()

    assert without_standard_input(ask) == (0, True)


def test_require_beside_a_free_descriptor(pair):
    """The descriptor that require() makes may be 0, and is closed."""

    def ask():
        groups = {os.getegid(), *os.getgroups()}
        cred = peercred.AllowList(gids=groups).require(pair[0])
        return cred.pid, is_open(0)

    assert without_standard_input(ask) == (os.getpid(), False)


@needs_pidfd
@pytest.mark.parametrize("question", OPENING, ids=str)
def test_pidfd(pair, question):
    """A pidfd may have the number 0, also one that open_proc() closes."""
    peer = myself()

    def opened():
        answer = question.function(pair[0])
        return is_open(0), answer == 0, question.describes(answer, peer)

    is_pidfd = question.name == "open_pidfd"
    assert without_standard_input(opened) == (is_pidfd, is_pidfd, True)


@needs_pidfd
@pytest.mark.parametrize("question", OPENING, ids=str)
def test_pidfd_of_a_listening_socket(server, question):
    """A pidfd with the number 0 is closed if there is no peer."""

    def refused():
        with pytest.raises(peercred.NoPeerError):
            question.function(server)
        return is_open(0)

    assert without_standard_input(refused) is False


@needs_pidfd
def test_pidfd_of_a_message(datagrams):
    """A message owns and closes a pidfd with the number 0."""
    receiver, sender = datagrams
    messages.enable(receiver, pidfd=True)
    sender.send(b"x")

    def received():
        with messages.receive(receiver, 10) as message:
            inside = message.pidfd, message.pidfd_error, fdinfo(message.pidfd)
        return *inside, is_open(0)

    assert without_standard_input(received) == (0, None, os.getpid(), False)


@needs_pidfd
def test_proc_of_a_message(datagrams):
    """The directory may have the number 0, also of a message."""
    receiver, sender = datagrams
    messages.enable(receiver, pidfd=True)
    sender.send(b"x")
    with messages.receive(receiver, 10) as message:

        def opened():
            proc = message.open_proc()
            return proc, os.readlink("exe", dir_fd=proc)

        assert without_standard_input(opened) == (0, os.readlink("/proc/self/exe"))


@pytest.mark.parametrize("how", ["with", "detach", "too many"])
def test_attached_to_a_message(datagrams, how):
    """An attached descriptor 0 is kept, handed over or closed as usual."""
    receiver, sender = datagrams
    messages.enable(receiver, label=True)  # its room lets more in than were asked for
    with open(os.devnull) as file:
        socket.send_fds(sender, [b"x"], [file.fileno()])

    def received():
        with messages.receive(receiver, 10, max_fds=how != "too many") as message:
            inside = message.fds
            if how == "detach":
                message.detach_fds()
        return inside, is_open(0)

    assert without_standard_input(received) == ((), False) if how == "too many" else ((0,), how == "detach")
