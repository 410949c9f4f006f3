"""receive(): the pidfd of the sender, or why there is none."""

from __future__ import annotations

import errno
import os
import socket

from peers import Child, call, fdinfo, fill_table, identity, needs_pidfd, needs_pidfd_open, own_identity

from peercred import messages


@needs_pidfd
@needs_pidfd_open
def test_pidfd_is_the_sender(ends):
    """The pidfd refers to the sender, and is close-on-exec."""
    receiver, sender = ends
    messages.enable(receiver, pidfd=True)
    with Child(lambda: sender.send(b"x")) as child, messages.receive(receiver, 100) as message:
        assert fdinfo(message.pidfd) == child.pid == message.cred.pid
        assert identity(message.pidfd) == own_identity(child.pid)
        assert not os.get_inheritable(message.pidfd)


@needs_pidfd
def test_pidfd_without_credentials(ends):
    """A pidfd arrives without credentials, if only that is enabled."""
    receiver, sender = ends
    messages.enable(receiver, creds=False, pidfd=True)
    sender.send(b"x")
    with messages.receive(receiver, 100) as message:
        assert message.cred is None
        assert fdinfo(message.pidfd) == os.getpid()


@needs_pidfd
def test_early_message_has_no_pidfd(ends):
    """A message that was queued early has no pidfd, which is no error."""
    receiver, sender = ends
    sender.send(b"x")
    messages.enable(receiver, pidfd=True)
    message = messages.receive(receiver, 100)
    assert (message.pidfd, message.pidfd_error) == (None, None)


@needs_pidfd
def test_peeking_makes_one_more_pidfd(ends):
    """Each MSG_PEEK makes a new pidfd, which its message owns."""
    receiver, sender = ends
    messages.enable(receiver, pidfd=True)
    sender.send(b"x")
    with messages.receive(receiver, 100, socket.MSG_PEEK) as first, messages.receive(receiver, 100) as second:
        assert first == second
        assert first.pidfd != second.pidfd
        assert identity(first.pidfd) == identity(second.pidfd)


@needs_pidfd
def test_reaped_sender(ends):
    """A reaped sender has a pidfd of nobody, or none because of ESRCH.

    Its credentials are whole.
    """
    receiver, sender = ends
    messages.enable(receiver, pidfd=True)
    with Child(lambda: sender.send(b"x")) as child:
        child.result()
    with messages.receive(receiver, 100) as message:
        assert message.cred.pid == child.pid
        if message.pidfd is None:
            assert isinstance(message.pidfd_error, ProcessLookupError)
        else:
            assert fdinfo(message.pidfd) == -1


@needs_pidfd
def test_full_table(ends):
    """In a full table there is no pidfd, because of EMFILE.

    Data and credentials arrive.
    """
    receiver, sender = ends
    messages.enable(receiver, pidfd=True)
    sender.send(b"x")
    socket.send_fds(sender, [b"y"], [0, 0])

    def full():
        taken = fill_table()
        got = [messages.receive(receiver, 1) for _ in range(2)]
        os.close(taken.pop())
        os.close(os.dup(0))  # the one free place is still free
        return [(message.data, message.cred.uid, message.pidfd, message.pidfd_error.errno) for message in got]

    first, second = call(full)
    assert first == (b"x", os.getuid(), None, errno.EMFILE)
    assert second[:3] == (b"y", os.getuid(), None)
    assert second[3] in {errno.EMFILE, errno.EMSGSIZE}
