"""Senders that die, and senders that write to one socket at the same time.

Each message names its own sender. The expected ids are those that the senders
read of themselves.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections import Counter, defaultdict

import pytest
from peers import DEADLINE, Child, attach, become, needs_root, outcome
from raw import assert_nothing_arrives, creds, send_raw

from peercred import Cred, messages


@needs_root
@pytest.mark.parametrize("state", ["killed", "a zombie", "killed, and not reaped"])
@pytest.mark.parametrize("max_fds", [0, 1])
def test_sender_that_died_after_sending(ends, state, max_fds):
    """A message and its descriptors outlive the sender, with its ids."""
    receiver, sender = ends
    messages.enable(receiver)

    def send():
        become(uid=(1001, 1002, 1003), gid=(2001, 2002, 2003))
        attach(sender, b"x", 1)
        return os.getuid(), os.getgid()

    with Child(send) as child:
        ids = child.result()
        if state == "killed":
            child.kill()
        elif state == "a zombie":
            child.end()
        else:
            os.kill(child.pid, 9)
            child.forget()
        with messages.receive(receiver, 100, max_fds=max_fds) as message:
            assert (message.data, message.cred, len(message.fds)) == (b"x", Cred(child.pid, *ids), max_fds)
        if state == "killed, and not reaped":
            os.waitpid(child.pid, 0)


@needs_root
def test_sender_that_died_before_sending(ends):
    """If nobody has sent, there is no message, and no sender is named."""
    receiver, sender = ends
    messages.enable(receiver)
    with Child(lambda: become(uid=1001, gid=2001) or os.kill(os.getpid(), 9)) as child:
        os.waitpid(child.pid, 0)
        child.forget()
    sender.close()
    if receiver.type == socket.SOCK_DGRAM:
        assert_nothing_arrives(receiver)
    else:  # the end of the connection
        assert messages.receive(receiver, 100, socket.MSG_DONTWAIT) == messages.Message(b"")


@needs_root
@pytest.mark.parametrize("flags", [0, socket.MSG_WAITALL], ids=["no flags", "MSG_WAITALL"])
def test_sender_that_died_while_sending(pair, flags, effort):
    """No byte of a sender that was killed passes for the next sender's.

    Two users write to one stream. The first is killed in the middle.
    """
    receiver, sender = pair
    messages.enable(receiver)
    # With a timeout, MSG_WAITALL takes the last bytes too, and does not wait
    # for more.
    receiver.settimeout(DEADLINE)

    def write(uid, letter, number):
        become(uid=uid, gid=uid)
        sender.sendall(letter * number)

    for _ in range(effort):
        with Child(lambda: write(1001, b"a", 2**24)) as first:
            received, creds_of = Counter(), {}

            def take(received=received, creds_of=creds_of):
                message = messages.receive(receiver, 10_007, flags)
                [letter] = set(message.data)
                received[letter] += len(message.data)
                assert creds_of.setdefault(letter, message.cred) == message.cred

            take()
            # It cannot finish: the stream holds less, and nobody reads.
            while select.select([], [sender], [], 0)[1]:
                assert os.waitpid(first.pid, os.WNOHANG) == (0, 0)
            first.kill()
            with Child(lambda: write(1002, b"b", 50_000)) as second:
                while received[ord("b")] < 50_000:
                    take()
                second.result()
                assert creds_of == {97: Cred(first.pid, 1001, 1001), 98: Cred(second.pid, 1002, 1002)}
                assert 0 < received[97] < 2**24


# The sender's pid, uid and gid, as it reads them of itself; its effective uid;
# the number of the record.
RECORD = struct.Struct("iIIIi")


def records(numbers):
    return b"".join(RECORD.pack(os.getpid(), os.getuid(), os.getgid(), os.geteuid(), number) for number in numbers)


def send_and_forge(sender, number, each):
    """Send records as the user with this number, and sometimes forge its ids.

    Return how many forgeries were refused, the own ids, and the data.
    """
    refused = 0
    for i in range(each):
        if i % 10:
            sender.send(records([i]))
            continue
        for claim in ((os.getpid(), 3000 + (number + 1) % 4, 5000 + number), (os.getppid(), 0, 0)):
            refused += outcome(send_raw, sender, creds(*claim)) == (PermissionError, errno.EPERM)
        socket.send_fds(sender, [records([i])], [0, sender.fileno()])
    return refused, (os.getpid(), os.getuid(), os.getgid()), records(range(each))


KINDS = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}


@needs_root
@pytest.mark.parametrize(
    ("way", "bufsize"),
    [
        *[(way, bufsize) for way in ("datagram", "datagram by address", "seqpacket") for bufsize in (RECORD.size, 100)],
        *[("stream", bufsize) for bufsize in (13, RECORD.size, 4096)],
    ],
)
def test_four_users_at_once(way, bufsize, place, effort):
    """Each of thousands of messages from four users names its own sender.

    Every tenth time, the senders also claim each other's ids, and attach
    descriptors. Data of a stream is cut anywhere, but two senders' data never
    arrives in one message.
    """
    kind = KINDS.get(way, socket.SOCK_DGRAM)
    each = 1_000 * effort
    start, go = os.pipe()
    with contextlib.ExitStack() as stack:
        if way == "datagram by address":
            receiver = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            receiver.bind(str(place / "socket"))
            os.chmod(place / "socket", 0o666)
        else:
            receiver, shared = map(stack.enter_context, socket.socketpair(socket.AF_UNIX, kind))
        messages.enable(receiver)

        def send(number):
            become(uid=(3000 + number, 4000 + number, 3000 + number), gid=5000 + number)
            if way == "datagram by address":
                sender = socket.socket(socket.AF_UNIX, kind)
                sender.connect(str(place / "socket"))
            else:
                sender = shared
            os.close(go)
            os.read(start, 1)
            return send_and_forge(sender, number, each)

        senders = [stack.enter_context(Child(lambda number=number: send(number))) for number in range(4)]
        os.close(go)  # they begin together
        os.close(start)
        received, turns, last, total = defaultdict(bytes), 0, None, 0
        while total < 4 * each * RECORD.size:
            message = messages.receive(receiver, bufsize)
            received[message.cred] += message.data
            total += len(message.data)
            turns += message.cred != last
            last = message.cred
            assert kind == socket.SOCK_STREAM or len(message.data) == RECORD.size
        expected = {}
        for child in senders:
            refused, ids, data = child.result()
            assert refused == 2 * len(range(0, each, 10))
            assert ids[0] == child.pid
            expected[Cred(*ids)] = data
        assert turns > 4, "they did not write at once"
        assert received == expected
