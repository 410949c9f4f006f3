"""receive() against senders that forge, flood, and die: a message names its sender, or it is an error.

No descriptor stays open, and none beyond max_fds is handed out. The control
messages here are bytes made by hand. The oracles are the ids that each sender
read of itself, the bytes it sent, and /proc.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import struct
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
from peers import (
    Child,
    become,
    call,
    fdinfo,
    needs_namespaces,
    needs_pidfd,
    needs_root,
    outcome,
    own,
)
from raw import creds, own_creds, part, rights, send_raw

from peercred import Cred, messages
from peercred._libc import lib

DEADLINE = 60  # seconds; nothing here takes one
NOTHING_ARRIVES = (BlockingIOError, errno.EAGAIN)


def open_descriptors():
    return set(os.listdir("/proc/self/fd"))


def fill_the_table():
    """Take every descriptor that this process may have; returns those taken."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken = []
    while isinstance(fd := outcome(os.dup, 0), int):
        taken.append(fd)
    return taken


@contextlib.contextmanager
def all_closed():
    """Gives a descriptor to attach. In the end nobody may have it: neither a process, nor a message in a queue."""
    watched, attached = os.pipe()
    try:
        try:
            yield attached
        finally:
            os.close(attached)
        # Linux may still be collecting what is only in queues.
        assert select.select([watched], [], [], DEADLINE) == ([watched], [], []), "somebody still has it"
        assert os.read(watched, 1) == b""
    finally:
        os.close(watched)


# Control messages of every shape

REFUSED = {
    "no length": (lambda: own_creds(length=0), errno.EINVAL),
    "shorter than its header": (lambda: own_creds(length=socket.CMSG_LEN(0) - 1), errno.EINVAL),
    "longer than the control data": (lambda: own_creds(length=socket.CMSG_SPACE(12) + 1), errno.EINVAL),
    "of a negative length": (lambda: own_creds(length=2 ** (8 * struct.calcsize("N") - 1)), errno.EINVAL),
    "a good one, then one without a length": (lambda: rights(0) + rights(0, length=0), errno.EINVAL),
    "credentials without a payload": (lambda: part(socket.SCM_CREDENTIALS, b""), errno.EINVAL),
    "credentials a byte too short": (lambda: own_creds(length=socket.CMSG_LEN(11)), errno.EINVAL),
    "credentials a byte too long": (lambda: own_creds(length=socket.CMSG_LEN(13)), errno.EINVAL),
    "credentials twice in one": (
        lambda: part(socket.SCM_CREDENTIALS, 2 * struct.pack("iII", os.getpid(), os.getuid(), os.getgid())),
        errno.EINVAL,
    ),
    "nobody's uid": (lambda: creds(os.getpid(), 2**32 - 1, os.getgid()), errno.EINVAL),
    "nobody's gid": (lambda: creds(os.getpid(), os.getuid(), 2**32 - 1), errno.EINVAL),
    "a descriptor too many": (lambda: rights(*[0] * 254), errno.EINVAL),
    "a descriptor too many, in the second part": (lambda: rights(*[0] * 253) + rights(0), errno.EINVAL),
    "a descriptor of -1": (lambda: rights(0, -1), errno.EBADF),
    "a descriptor that is not open": (lambda: rights(0, 2**31 - 1), errno.EBADF),
    "a pidfd": (lambda: part(lib.SCM_PIDFD, bytes(4)), errno.EINVAL),
    "a label": (lambda: part(lib.SCM_SECURITY, b"label\0"), errno.EINVAL),
    "type 0": (lambda: part(0, bytes(12)), errno.EINVAL),
    "type -1": (lambda: part(-1, bytes(12)), errno.EINVAL),
    "a mebibyte": (lambda: rights(*[0] * 2**18), errno.ENOBUFS),
}


@pytest.mark.parametrize("shape", REFUSED)
def test_what_the_kernel_refuses(ends, shape):
    """The sender of a malformed control message gets an error, and nothing arrives: no part of it, and no data."""
    receiver, sender = ends
    messages.enable(receiver)
    control, number = REFUSED[shape]
    with pytest.raises(OSError, match="sendmsg") as caught:
        send_raw(sender, control())
    assert caught.value.errno == number
    assert outcome(messages.receive, receiver, 100, socket.MSG_DONTWAIT) == NOTHING_ARRIVES


def test_control_data_of_two_gibibytes(ends):
    """A length that is no int is refused before a byte of it is read."""
    receiver, sender = ends
    messages.enable(receiver)
    assert outcome(send_raw, sender, own_creds(), b"x", 2**31) == (OSError, errno.ENOBUFS)
    assert outcome(messages.receive, receiver, 100, socket.MSG_DONTWAIT) == NOTHING_ARRIVES


IGNORED = {
    "nothing": lambda: b"",
    "less than a header": lambda: bytes(socket.CMSG_LEN(0) - 1),
    "root's credentials, of another level": lambda: creds(1, 0, 0, level=socket.IPPROTO_IP),
    "root's credentials, of level 0xffffffff": lambda: creds(1, 0, 0, level=-1),
    "descriptors of another level": lambda: rights(0, 1, 2, level=socket.IPPROTO_TCP),
    "no descriptors": lambda: rights(),
    "three bytes of a descriptor": lambda: part(socket.SCM_RIGHTS, bytes(3)),
    "what follows the last one": lambda: own_creds() + bytes(socket.CMSG_LEN(0) - 1),
}


@pytest.mark.parametrize("shape", IGNORED)
@pytest.mark.parametrize("max_fds", [0, 253])
def test_what_the_kernel_ignores(ends, shape, max_fds):
    """The message arrives as if nothing had been attached: its sender is the true one, and it has no descriptors."""
    receiver, sender = ends
    messages.enable(receiver)
    send_raw(sender, IGNORED[shape]())
    with messages.receive(receiver, 100, max_fds=max_fds) as message:
        assert message == messages.Message(b"x", own())
        assert (message.fds, message.pidfd) == ((), None)


@pytest.mark.parametrize("max_fds", [0, 2, 4, 253])
def test_doubled_descriptors(ends, max_fds):
    """Descriptors in several parts count together, in their order: those of one part cannot be had beyond max_fds."""
    receiver, sender = ends
    messages.enable(receiver)
    before = open_descriptors()
    with all_closed() as attached:
        send_raw(sender, rights(0, attached) + own_creds() + rights(attached) + rights(0))
        with messages.receive(receiver, 100, max_fds=max_fds) as message:
            assert message.cred == own()
            expected = [os.fstat(fd) for fd in (0, attached, attached, 0)][:max_fds]
            assert all(map(os.path.samestat, map(os.fstat, message.fds), expected))
            assert len(message.fds) == len(expected) == len(open_descriptors() - before) - 2  # of the pipe
            assert bool(message.flags & socket.MSG_CTRUNC) == (max_fds < 4)


# Forged credentials


@needs_root
def test_forged_by_a_user(ends):
    """A claim to be somebody else is EPERM, alone and before or after a true one, and nothing arrives."""
    receiver, sender = ends
    messages.enable(receiver)

    def forge():
        become(uid=1001, gid=2001)
        me = (os.getpid(), 1001, 2001)
        forged = [(me[0], 0, 2001), (me[0], 1002, 2001), (me[0], 1001, 0), (0, *me[1:]), (-1, *me[1:]), (1, *me[1:])]
        controls = [
            [before + creds(*claim) + after for before in (b"", creds(*me)) for after in (b"", creds(*me), rights(0))]
            for claim in [*forged, (os.getppid(), *me[1:]), (1, 0, 0)]
        ]
        return Counter(outcome(send_raw, sender, control) for several in controls for control in several)

    assert call(forge) == {(PermissionError, errno.EPERM): 8 * 6}
    assert outcome(messages.receive, receiver, 100, socket.MSG_DONTWAIT) == NOTHING_ARRIVES


@needs_namespaces  # it is CAP_SYS_ADMIN that lets a process claim another's pid
def test_forged_by_root(ends):
    """Root is believed whatever it claims: that is what a claim of root's is worth. Of two claims, the last counts."""
    receiver, sender = ends
    messages.enable(receiver)
    with Child(lambda: None) as other:
        for claim in ((os.getpid(), 1, 2), (other.pid, 4294967294, 0), (os.getppid(), 0, 4294967294)):
            send_raw(sender, creds(*claim))
            assert messages.receive(receiver, 100).cred == Cred(*claim)
            send_raw(sender, own_creds() + rights(0) + creds(*claim))
            assert messages.receive(receiver, 100).cred == Cred(*claim)
            send_raw(sender, creds(*claim) + own_creds())
            assert messages.receive(receiver, 100).cred == own()


@needs_namespaces
@pytest.mark.parametrize("pid", [0, -1, -errno.ENODATA, -(2**31), 2**31 - 1])
def test_pids_of_no_process(ends, pid):
    """Root cannot claim a pid that stands for "hidden", or for an error: ESRCH, and nothing arrives."""
    receiver, sender = ends
    messages.enable(receiver)
    assert outcome(send_raw, sender, creds(pid, 0, 0)) == (ProcessLookupError, errno.ESRCH)
    assert outcome(messages.receive, receiver, 100, socket.MSG_DONTWAIT) == NOTHING_ARRIVES


# Floods of descriptors


@pytest.mark.parametrize("max_fds", [0, 1, 253])
@pytest.mark.parametrize("pidfd", [False, pytest.param(True, marks=needs_pidfd)])
def test_bombs(ends, max_fds, pidfd, effort):
    """Each of many messages has 253 descriptors: each is whole, and gives max_fds at most, and all are closed."""
    receiver, sender = ends
    messages.enable(receiver, pidfd=pidfd)
    sender.setblocking(False)
    receiver.setblocking(False)
    before, received = open_descriptors(), 0
    with all_closed() as attached:
        bomb = own_creds() + rights(*[attached] * 253)
        for _ in range(effort):
            sent = 0
            while sent < 50:
                try:
                    send_raw(sender, bomb, b"x")
                except OSError as error:  # the queue is full, or a user has no more descriptors to send
                    assert error.errno in {errno.EAGAIN, errno.ETOOMANYREFS}
                    break
                sent += 1
            assert sent > 1
            for _ in range(sent):
                with messages.receive(receiver, 1, max_fds=max_fds) as message:
                    assert (message.data, message.cred, len(message.fds)) == (b"x", own(), max_fds)
                    assert bool(message.flags & socket.MSG_CTRUNC) == (max_fds < 253)
                    assert message.pidfd is None or fdinfo(message.pidfd) == os.getpid()
                    kept = max_fds + (message.pidfd is not None)
                    assert len(open_descriptors() - before) == kept + 2  # of the pipe
                received += 1
    assert received > effort


@pytest.mark.parametrize("max_fds", [0, 1, 253])
def test_bombs_into_a_full_table(ends, max_fds):
    """Without a free descriptor none is let in, and each message arrives whole, with its sender."""
    receiver, sender = ends
    messages.enable(receiver)
    receiver.settimeout(DEADLINE)
    sender.settimeout(DEADLINE)

    def flood():
        for _ in range(20):
            socket.send_fds(sender, [b"x"], [0] * 40)  # a user may have 1024 in queues

    def full():
        taken = fill_the_table()
        got = Counter()
        for _ in range(20):
            message = messages.receive(receiver, 1, max_fds=max_fds)
            got[message.data, message.cred, message.fds, message.flags] += 1
        return got, outcome(os.dup, 0), len({os.fstat(fd).st_ino for fd in taken})  # it is as full as it was

    with Child(flood) as child, Child(full) as reader:
        bomb = (b"x", Cred(child.pid, os.getuid(), os.getgid()), (), socket.MSG_CTRUNC)
        assert reader.result() == ({bomb: 20}, (OSError, errno.EMFILE), 1)


@needs_pidfd
def test_no_place_but_for_the_bomb(ends):
    """With one free descriptor, a stranger's takes it from the pidfd: that is said, and nobody else's is handed out."""
    receiver, sender = ends
    messages.enable(receiver, pidfd=True)
    for _ in range(2):
        socket.send_fds(sender, [b"x"], [0] * 253)

    def nearly_full():
        taken = fill_the_table()
        os.close(taken[-1])
        got = []
        for max_fds in (0, 253):
            with messages.receive(receiver, 1, max_fds=max_fds) as message:
                names_me = message.pidfd is None or fdinfo(message.pidfd) == os.getppid()
                got.append((len(message.fds) <= max_fds, message.flags, names_me))
                got.append((message.pidfd is None) == (message.pidfd_error is not None))
        return got, os.dup(0) == taken[-1]

    sure = [(True, socket.MSG_CTRUNC, True), True]
    assert call(nearly_full) == (2 * sure, True)


@pytest.mark.parametrize("max_fds", [0, 1])
@pytest.mark.parametrize("flags", [0, socket.MSG_PEEK])
def test_sockets_inside_sockets(ends, max_fds, flags):
    """A socket whose queue holds a socket, whose queue holds a socket: it goes as one descriptor, with all inside."""
    receiver, sender = ends
    messages.enable(receiver)
    with all_closed() as attached:
        inner = os.dup(attached)
        for _ in range(3):  # Linux 6.1 allows four, with the message itself
            left, right = socket.socketpair(socket.AF_UNIX, receiver.type)
            with left:
                socket.send_fds(left, [b"x"], [inner, left.fileno()])
            os.close(inner)
            inner = right.detach()
        send_raw(sender, rights(inner))
        os.close(inner)
        with messages.receive(receiver, 100, flags, max_fds=max_fds) as message:
            assert (message.data, message.cred, len(message.fds)) == (b"x", own(), max_fds)
        if flags:
            messages.receive(receiver, 100).close()


@pytest.mark.parametrize("max_fds", [0, 1, 3])
def test_socket_in_its_own_queue(ends, max_fds):
    """The receiver's own socket, attached to itself many times: no message is lost, and all are closed with it."""
    receiver, sender = ends
    messages.enable(receiver)
    with all_closed() as attached:
        for _ in range(5):
            send_raw(sender, rights(receiver.fileno(), sender.fileno(), attached))
        for _ in range(3):
            with messages.receive(receiver, 1, max_fds=max_fds) as message:
                assert (message.data, message.cred, len(message.fds)) == (b"x", own(), max_fds)
        messages.receive(receiver, 1, socket.MSG_PEEK, max_fds=max_fds).close()
        sender.close()  # two are still in the queue, and hold it
        receiver.close()
        socket.socket(socket.AF_UNIX).close()  # closing one is when Linux looks for cycles


# Senders that die


@needs_root
@pytest.mark.parametrize("state", ["killed", "a zombie", "killed, and not reaped"])
@pytest.mark.parametrize("max_fds", [0, 1])
def test_sender_that_died_after_sending(ends, state, max_fds):
    """A message outlives its sender, with the ids that it had; so do the descriptors."""
    receiver, sender = ends
    messages.enable(receiver)

    def send():
        become(uid=(1001, 1002, 1003), gid=(2001, 2002, 2003))
        socket.send_fds(sender, [b"x"], [0])
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
    """Nobody has sent: that is the end of a connection, without a sender, or no message at all."""
    receiver, sender = ends
    messages.enable(receiver)
    with Child(lambda: become(uid=1001, gid=2001) or os.kill(os.getpid(), 9)) as child:
        os.waitpid(child.pid, 0)
        child.forget()
    sender.close()
    message = outcome(messages.receive, receiver, 100, socket.MSG_DONTWAIT)
    assert message == (NOTHING_ARRIVES if receiver.type == socket.SOCK_DGRAM else messages.Message(b""))


@needs_root
@pytest.mark.parametrize("flags", [0, socket.MSG_WAITALL])
def test_sender_that_died_in_the_middle(pair, flags, effort):
    """Two users write to one stream, and one is killed in its write: no byte of the one is called the other's."""
    receiver, sender = pair
    messages.enable(receiver)
    receiver.settimeout(DEADLINE)
    sender.setblocking(True)

    def write(uid, letter, number):
        become(uid=uid, gid=uid)
        sender.sendall(letter * number)

    for _ in range(effort):
        with Child(lambda: write(1001, b"a", 2**24)) as first:
            got, creds = Counter(), {}

            def take(got=got, creds=creds):
                message = messages.receive(receiver, 10_007, flags)
                [letter] = set(message.data)
                got[letter] += len(message.data)
                assert creds.setdefault(letter, message.cred) == message.cred

            take()
            # It cannot finish: the stream holds less, and nobody reads.
            while select.select([], [sender], [], 0)[1]:
                assert os.waitpid(first.pid, os.WNOHANG) == (0, 0)
            first.kill()
            with Child(lambda: write(1002, b"b", 50_000)) as second:
                while got[ord("b")] < 50_000:
                    take()
                second.result()
                assert creds == {97: Cred(first.pid, 1001, 1001), 98: Cred(second.pid, 1002, 1002)}
                assert 0 < got[97] < 2**24


# Four users at once

RECORD = struct.Struct("iIIIi")  # pid, uid and gid, as the sender reads them of itself; effective uid; number


def records(numbers):
    return b"".join(RECORD.pack(os.getpid(), os.getuid(), os.getgid(), os.geteuid(), number) for number in numbers)


@needs_root
@pytest.mark.parametrize(
    ("way", "bufsize"),
    [
        *[(way, bufsize) for way in ("datagram", "datagram by address", "seqpacket") for bufsize in (RECORD.size, 100)],
        *[("stream", bufsize) for bufsize in (13, RECORD.size, 4096)],
    ],
)
def test_four_users_at_once(way, bufsize, place, effort):
    """Of thousands of messages, none is called another's: each has the ids that its sender read of itself.

    Every tenth time the senders also try to pass for one another, and attach
    descriptors. A stream is cut anywhere, but not across two senders.
    """
    kind = {"seqpacket": socket.SOCK_SEQPACKET, "stream": socket.SOCK_STREAM}.get(way, socket.SOCK_DGRAM)
    each = 1_000 * effort
    receiver, sender = socket.socketpair(socket.AF_UNIX, kind)
    start, go = os.pipe()
    with receiver, sender, contextlib.ExitStack() as children:
        if way == "datagram by address":
            for sock in (receiver, sender):
                sock.close()
            receiver = children.enter_context(socket.socket(socket.AF_UNIX, kind))
            receiver.bind(str(place / "socket"))
            os.chmod(place / "socket", 0o666)
            sender = children.enter_context(socket.socket(socket.AF_UNIX, kind))
            sender.connect(str(place / "socket"))
        messages.enable(receiver)

        def send(number):
            become(uid=(3000 + number, 4000 + number, 3000 + number), gid=5000 + number)
            socket_of_ours = sender
            if way == "datagram by address":
                socket_of_ours = socket.socket(socket.AF_UNIX, kind)
                socket_of_ours.connect(str(place / "socket"))
            socket_of_ours.setblocking(True)
            os.close(go)
            os.read(start, 1)
            refused = 0
            for i in range(each):
                if i % 10:
                    socket_of_ours.send(records([i]))
                    continue
                for claim in ((os.getpid(), 3000 + (number + 1) % 4, 5000 + number), (os.getppid(), 0, 0)):
                    refused += outcome(send_raw, socket_of_ours, creds(*claim)) == (PermissionError, errno.EPERM)
                socket.send_fds(socket_of_ours, [records([i])], [0, socket_of_ours.fileno()])
            return refused, (os.getpid(), os.getuid(), os.getgid()), records(range(each))

        senders = [children.enter_context(Child(lambda number=number: send(number))) for number in range(4)]
        os.close(go)  # they begin together
        os.close(start)
        receiver.settimeout(DEADLINE)
        received, turns, last, total = defaultdict(list), 0, None, 0
        while total < 4 * each * RECORD.size:
            message = messages.receive(receiver, bufsize)
            received[message.cred].append(message.data)
            total += len(message.data)
            turns += message.cred != last
            last = message.cred
        expected = {}
        for child in senders:
            refused, ids, data = child.result()
            assert refused == 2 * len(range(0, each, 10))
            assert ids[0] == child.pid
            expected[Cred(*ids)] = data
        assert turns > 4, "they did not write at once"
        assert {cred: b"".join(parts) for cred, parts in received.items()} == expected
        if kind != socket.SOCK_STREAM:
            assert {len(data) for parts in received.values() for data in parts} == {RECORD.size}


# What no kernel does: two control messages of a type

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* recvmsg(2), but the control data is the bytes of CONTROL (in hex). */
ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    ssize_t (*real)(int, struct msghdr *, int) = dlsym(RTLD_NEXT, "recvmsg");
    const char *control = getenv("CONTROL");
    size_t i, size, room = message->msg_controllen;
    ssize_t result = real(fd, message, flags);

    if (!control || result < 0)
        return result;
    size = strlen(control) / 2;
    if (size > room)
        abort();
    for (i = 0; i < size; i++)
        sscanf(control + 2 * i, "%2hhx", (unsigned char *)message->msg_control + i);
    message->msg_controllen = size;
    return result;
}
"""

PROGRAM = """
import os, socket
from peercred import messages
receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
messages.enable(receiver, label=True)  # there is room for 4096 bytes
sender.send(b"x")
for number in range(95, 100): os.dup2(0, number)
try:
    with messages.receive(receiver, 10, max_fds=2) as message:
        print(message.cred, message.pidfd, message.fds, message.flags, end=" ")
except OSError as error:
    print(error.errno, end=" ")
print(*(number for number in range(95, 100) if not os.path.exists(f"/proc/self/fd/{number}")))
"""

DOUBLED = {
    "one of each": (creds(7, 8, 9) + rights(95, 96) + part(lib.SCM_PIDFD, struct.pack("i", 97)),
                    "Cred(pid=7, uid=8, gid=9) 97 (95, 96) 0 95 96 97"),
    "credentials": (creds(7, 8, 9) + creds(7, 8, 9), f"{errno.EMSGSIZE} "),
    "credentials, and descriptors": (creds(7, 8, 9) + rights(95) + creds(1, 0, 0) + rights(96, 97),
                                     f"{errno.EMSGSIZE} 95 96 97"),
    "descriptors": (creds(7, 8, 9) + rights(95) + rights(96, 97) + rights(98),
                    f"Cred(pid=7, uid=8, gid=9) None (95, 96) {int(socket.MSG_CTRUNC)} 95 96 97 98"),
    "pidfds": (creds(7, 8, 9) + part(lib.SCM_PIDFD, struct.pack("i", 95)) + part(lib.SCM_PIDFD, struct.pack("i", 96)),
               f"Cred(pid=7, uid=8, gid=9) 95 () {int(socket.MSG_CTRUNC)} 95 96"),
    "half a descriptor": (creds(7, 8, 9) + part(socket.SCM_RIGHTS, struct.pack("i", 95) + bytes(3)),
                          "Cred(pid=7, uid=8, gid=9) None (95,) 0 95"),
}  # fmt: skip


@pytest.mark.parametrize("form", DOUBLED)
def test_doubled_in_the_answer(preloadable, form):
    """Two credentials are no credentials, and an error; descriptors count together, and all of them are closed."""
    control, expected = DOUBLED[form]
    env = {**os.environ, "LD_PRELOAD": str(preloadable(SHIM)), "CONTROL": control.hex()}
    assert subprocess.check_output([sys.executable, "-c", PROGRAM], env=env, text=True) == expected + "\n"
