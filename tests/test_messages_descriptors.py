"""receive(max_fds=...): descriptors that the receiver asks for."""

from __future__ import annotations

import os
import socket

import pytest
from peers import attach, call, fdinfo, fill_table, needs_pidfd, open_descriptors, own

from peercred import messages


@pytest.mark.parametrize("number", [1, 2, 253])
@pytest.mark.parametrize("room", [0, 1])
@pytest.mark.parametrize("flags", [0, socket.MSG_PEEK])
def test_received(ends, number, room, flags):
    """As many descriptors arrive as were attached, of the very file.

    They are close-on-exec. Each MSG_PEEK makes new ones.
    """
    receiver, sender = ends
    messages.enable(receiver)
    attach(sender, b"x", number, file=__file__)
    with messages.receive(receiver, 100, flags, max_fds=min(number + room, 253)) as message:
        assert (message.data, message.cred, message.flags) == (b"x", own(), 0)
        assert len(set(message.fds)) == number
        for fd in message.fds:
            assert os.path.samestat(os.fstat(fd), os.stat(__file__))
            assert not os.get_inheritable(fd)


@pytest.mark.parametrize(("attached", "max_fds"), [(2, 1), (3, 2), (253, 1), (253, 252)])
@pytest.mark.parametrize("label", [True, False])
def test_more_than_there_is_room_for(ends, attached, max_fds, label):
    """Of too many descriptors the first arrive, and MSG_CTRUNC is in the flags.

    The others are lost or closed.
    """
    receiver, sender = ends
    messages.enable(receiver, label=label)
    attach(sender, b"x", attached)
    before = open_descriptors()
    with messages.receive(receiver, 100, max_fds=max_fds) as message:
        assert (len(message.fds), message.cred) == (max_fds, own())
        assert message.flags == socket.MSG_CTRUNC
        assert len(open_descriptors().keys() - before.keys()) == max_fds


@needs_pidfd
@pytest.mark.parametrize("number", [0, 1, 2, 253])
@pytest.mark.parametrize("label", [True, False])
def test_everything_in_one_message(ends, number, label):
    """Credentials, pidfd, label and descriptors arrive in one message."""
    receiver, sender = ends
    messages.enable(receiver, pidfd=True, label=label)
    attach(sender, b"x", number)
    with messages.receive(receiver, 100, max_fds=number) as message:
        assert (message.cred, fdinfo(message.pidfd), message.pidfd_error) == (own(), os.getpid(), None)
        assert (len(message.fds), message.flags) == (number, 0)


def test_with_nothing_enabled(ends):
    """Descriptors arrive without credentials too."""
    receiver, sender = ends
    attach(sender, b"x", 1)
    with messages.receive(receiver, 100, max_fds=1) as message:
        assert (message.cred, len(message.fds), message.flags) == (None, 1, 0)


@pytest.mark.parametrize("number", [-1, 254, 2**31, 2**64, -(2**64)])
def test_max_fds_out_of_range(pair, number):
    """max_fds is refused if the kernel cannot send so many."""
    with pytest.raises(ValueError, match=f"^max_fds must be from 0 to 253, the kernel's limit, not {number}$"):
        messages.receive(pair[0], 10, max_fds=number)


@pytest.mark.parametrize("number", [None, "1", 1.5, (1,)])
def test_max_fds_is_an_int(pair, number):
    """max_fds must be an int."""
    with pytest.raises(TypeError):
        messages.receive(pair[0], 10, socket.MSG_DONTWAIT, max_fds=number)


def test_full_table(ends):
    """As many descriptors arrive as the table has room for, with MSG_CTRUNC.

    Data and credentials are whole.
    """
    receiver, sender = ends
    messages.enable(receiver)
    attach(sender, b"x", 5)

    def nearly_full():
        for fd in fill_table()[-2:]:
            os.close(fd)
        with messages.receive(receiver, 1, max_fds=5) as message:
            answer = message.data, message.cred.uid, len(message.fds), message.flags
        return answer, os.dup(0), os.dup(0)

    answer, *free = call(nearly_full)
    assert answer == (b"x", os.getuid(), 2, socket.MSG_CTRUNC)
    assert free == [62, 63]


def test_socket_that_carries_itself(pair):
    """A descriptor of the connection that it arrives on is like any other."""
    receiver, sender = pair
    messages.enable(receiver)
    for _ in range(3):
        messages.send(sender, b"x", fds=[sender, receiver])
        with messages.receive(receiver, 100, max_fds=2) as message:
            assert [
                os.path.samestat(os.fstat(fd), os.fstat(sock.fileno()))
                for fd, sock in zip(message.fds, (sender, receiver), strict=True)
            ] == [True, True]


# Refused at the source


@needs_passrights
def test_refused_at_the_sender(ends):
    """Linux 6.16: who attaches gets EPERM, plain messages arrive, and pidfds too."""
    receiver, sender = ends
    messages.enable(receiver, pidfd=True, fds=False)
    with pytest.raises(PermissionError):
        attach(sender, b"x", 1)
    with pytest.raises(PermissionError, match=r"with the descriptors \(0,\), which the receiver may refuse"):
        messages.send(sender, b"x", fds=[0])
    messages.send(sender, b"y")
    with messages.receive(receiver, 100, max_fds=1) as message:
        assert (message.data, fdinfo(message.pidfd), message.fds) == (b"y", os.getpid(), ())
    messages.enable(receiver)
    attach(sender, b"x", 1)
    assert messages.receive(receiver, 100).flags == socket.MSG_CTRUNC


@needs_passrights
def test_accepted_connections_refuse_too(server):
    """What the listener has refused before listen(), its connections refuse."""
    messages.enable(server, fds=False)
    server.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(server.getsockname())
        with server.accept()[0], pytest.raises(PermissionError):
            attach(client, b"x", 1)


@needs_passrights
def test_lingering_descriptor(ends):
    """A TCP socket that would take an hour to close never gets in."""
    receiver, sender = ends
    messages.enable(receiver, fds=False)

    def hostile():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            tcp = socket.create_connection(listener.getsockname())
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
            tcp.setblocking(False)
            while isinstance(outcome(tcp.send, bytes(65536)), int):
                pass
            error = outcome(socket.send_fds, sender, [b"x"], [tcp.fileno()])
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            tcp.close()
            return error

    assert call(hostile) == (PermissionError, errno.EPERM)
    with pytest.raises(BlockingIOError):
        messages.receive(receiver, 10, socket.MSG_DONTWAIT)


# send()


def test_sent(ends):
    """Ints and objects with fileno(), beside credentials, arrive as the standard library reads them."""
    receiver, sender = ends
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with open(__file__) as file:
        assert messages.send(sender, b"hello", cred=Cred(None, os.getuid(), os.getgid()), fds=(file, 0)) == 5
    data, [_, (level, kind, payload)], flags, _ = receiver.recvmsg(100, 100)
    assert (data, level, kind, flags) == (b"hello", socket.SOL_SOCKET, socket.SCM_RIGHTS, 0)
    fds = array.array("i", payload)
    assert [
        os.path.samestat(os.fstat(fd), other) for fd, other in zip(fds, (os.stat(__file__), os.fstat(0)), strict=True)
    ] == [
        True,
        True,
    ]
    for fd in fds:
        os.close(fd)


def test_as_many_as_there_can_be(ends):
    """253 arrive, and one more is an error before anything is sent."""
    receiver, sender = ends
    messages.send(sender, b"x", fds=[0] * 253)
    with messages.receive(receiver, 100, max_fds=253) as message:
        assert len(message.fds) == 253
    with pytest.raises(ValueError, match="at most 253 fds can be sent"):
        messages.send(sender, b"x", fds=[0] * 254)
    with pytest.raises(BlockingIOError):
        messages.receive(receiver, 10, socket.MSG_DONTWAIT)


@pytest.mark.parametrize(
    "fds", ["ab", b"ab", bytearray(b"ab"), memoryview(b"ab"), 5, None, [None], [True], ["5"], [5.0], [object]]
)
def test_what_is_no_descriptor(pair, fds):
    """A TypeError, and nothing is sent."""
    receiver, sender = pair
    with pytest.raises(TypeError):
        messages.send(sender, b"x", fds=fds)
    with pytest.raises(BlockingIOError):
        receiver.recv(1, socket.MSG_DONTWAIT)


@pytest.mark.parametrize("number", [-1, -(2**31), 2**31, 2**64])
def test_what_no_descriptor_can_be(pair, number):
    """-1 is the fileno() of a closed socket."""
    with pytest.raises(ValueError, match=f"none has the number {number}"):
        messages.send(pair[1], b"x", fds=[0, number])


def test_what_is_not_open(ends):
    """The kernel's EBADF, which names them; nothing is sent."""
    receiver, sender = ends
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises(OSError, match=rf"sending with the descriptors \(0, {fd}\)$") as caught:
        messages.send(sender, b"x", fds=[0, fd])
    assert caught.value.errno == errno.EBADF
    with pytest.raises(BlockingIOError):
        messages.receive(receiver, 10, socket.MSG_DONTWAIT)


@pytest.mark.parametrize("data", [b"", [], [b"", b""]])
def test_nothing_to_carry_them(pair, data):
    """On a stream, descriptors without data would not arrive."""
    with pytest.raises(ValueError, match="no data"):
        messages.send(pair[1], data, fds=[0])


def test_tls_socket():
    """An SSLSocket has no messages: refused by all three, with the remedy."""
    ours, theirs = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with theirs, context.wrap_socket(ours, do_handshake_on_connect=False) as sock:
        for function in (
            messages.enable,
            lambda sock: messages.receive(sock, 10),
            lambda sock: messages.send(sock, b"x"),
        ):
            with pytest.raises(TypeError, match=r"'SSLSocket' object is not a plain socket\.socket: "):
                function(sock)
