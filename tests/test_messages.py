"""messages.enable() and receive(): who sent this message, by the oracles of /proc and of the senders."""

from __future__ import annotations

import array
import errno
import gc
import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest
from peers import (
    Child,
    become,
    bind_mount,
    call,
    connect,
    fdinfo,
    identity,
    in_pid_namespace,
    in_user_namespace,
    needs_namespaces,
    needs_pidfd,
    needs_pidfd_open,
    needs_root,
    outcome,
    own,
    own_identity,
)

import peercred
from peercred import Cred, messages
from peercred._libc import lib

OPTIONS = {"creds": lib.SO_PASSCRED, "pidfd": lib.SO_PASSPIDFD, "label": lib.SO_PASSSEC}


def overflow():
    return tuple(int(Path(f"/proc/sys/kernel/overflow{kind}").read_text()) for kind in ("uid", "gid"))


def enabled(sock):
    """What is on, as the kernel says."""
    asked = {name: outcome(sock.getsockopt, socket.SOL_SOCKET, option) for name, option in OPTIONS.items()}
    return {name for name, on in asked.items() if on not in (0, (OSError, errno.ENOPROTOOPT))}


def test_sender_is_named(ends):
    """The pid and real ids of the process that wrote, whatever kind of socket."""
    receiver, sender = ends
    messages.enable(receiver)
    with Child(lambda: sender.send(b"hello")) as child:
        message = messages.receive(receiver, 100)
        assert message == messages.Message(
            data=b"hello", cred=Cred(child.pid, os.getuid(), os.getgid()), label=None, flags=0, address=None
        )
        assert message.pidfd is None
        assert message.pidfd_error is None


@needs_root
def test_real_ids(ends):
    """Of real, effective and saved ids, the real ones: those that SO_PEERCRED does not give."""
    receiver, sender = ends
    messages.enable(receiver)

    def send():
        become(uid=(1001, 1002, 1003), gid=(2001, 2002, 2003))
        sender.send(b"x")

    with Child(send) as child:
        cred = messages.receive(receiver, 100).cred
        child.result()
        assert cred == Cred(child.pid, child.status("Uid")[0], child.status("Gid")[0]) == Cred(child.pid, 1001, 2001)


@needs_root
def test_large_ids(datagrams):
    """Ids above 2^31 are unsigned."""
    receiver, sender = datagrams
    call(lambda: become(uid=4294967294, gid=3000000000) or sender.send(b"x"))
    cred = messages.receive(receiver, 100).cred
    assert (cred.uid, cred.gid) == (4294967294, 3000000000)


def test_writer_that_inherited_the_connection(server):
    """Who writes, not who connected."""
    messages.enable(server)
    with connect(server.getsockname()) as client, server.accept()[0] as conn:
        with Child(lambda: client.send(b"x")) as child:
            assert messages.receive(conn, 100).cred.pid == child.pid
        assert peercred.read(conn).pid == os.getpid()


def test_two_writers_of_one_stream(pair):
    """A read ends where the sender changes."""
    receiver, sender = pair
    messages.enable(receiver)
    pids = []
    for data in (b"one", b"two"):
        with Child(lambda data=data: sender.send(data)) as child:
            child.result()
            pids.append(child.pid)
    sender.send(b"three")
    got = [messages.receive(receiver, 100, socket.MSG_WAITALL if n < 2 else 0) for n in range(3)]
    assert [(message.data, message.cred.pid) for message in got] == [
        (b"one", pids[0]),
        (b"two", pids[1]),
        (b"three", os.getpid()),
    ]


def test_early_message_has_no_sender(ends):
    """What was queued before the option was on has (0, 65534, 65534) from the kernel, and None here."""
    receiver, sender = ends
    call(lambda: sender.send(b"early"))
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    control = receiver.recvmsg(100, 100, socket.MSG_PEEK)[1]
    assert array.array("I", control[0][2]).tolist() == [0, *overflow()]
    message = messages.receive(receiver, 100)
    assert (message.data, message.cred) == (b"early", None)
    sender.send(b"late")
    assert messages.receive(receiver, 100).cred == own()


def test_early_and_late_on_one_stream(pair):
    """Early data is not handed to the sender of what follows."""
    receiver, sender = pair
    sender.send(b"early")
    messages.enable(receiver)
    sender.send(b"late")
    first, second = messages.receive(receiver, 100), messages.receive(receiver, 100)
    assert (first.data, first.cred) == (b"early", None)
    assert (second.data, second.cred) == (b"late", own())


@pytest.mark.parametrize("how", ["closed", "shut down by the peer", "shut down"])
@pytest.mark.parametrize("flags", [0, socket.MSG_PEEK])
@pytest.mark.parametrize("bufsize", [0, 100])
def test_end_of_a_stream_has_no_sender(pair, how, flags, bufsize):
    """There the kernel says (0, 0, 0): root."""
    receiver, sender = pair
    messages.enable(receiver)
    if how == "closed":
        sender.close()
    else:
        (receiver if how == "shut down" else sender).shutdown(socket.SHUT_RDWR)
    assert receiver.recvmsg(100, 100)[1][0][2] == bytes(12)
    message = messages.receive(receiver, bufsize, flags)
    assert (message.data, message.cred, message.label) == (b"", None, None)


@needs_namespaces
@pytest.mark.parametrize("mapping", ["1000 0 1", "0 1000 1"])
def test_end_of_a_stream_in_a_user_namespace(pair, mapping):
    """Root's zeroes are translated: the kernel says (0, 1000, 1000) to whom root is 1000, and that is nobody either."""
    receiver, sender = pair
    messages.enable(receiver)
    sender.close()

    def inside():
        return (
            array.array("I", receiver.recvmsg(100, 100)[1][0][2]).tolist(),
            messages.receive(receiver, 100).cred,
        )

    expected = [0, 1000, 1000] if mapping == "1000 0 1" else [0, *overflow()]
    assert in_user_namespace(mapping, inside) == (expected, None)


def test_end_of_a_seqpacket_connection():
    """It comes without credentials."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with receiver:
        messages.enable(receiver)
        sender.close()
        assert messages.receive(receiver, 100).cred is None


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
@pytest.mark.parametrize("bufsize", [0, 100])
def test_empty_message_is_real(kind, bufsize):
    """An empty message is one, with a sender."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, kind)
    with receiver, sender:
        messages.enable(receiver)
        with Child(lambda: sender.send(b"")) as child:
            child.result()
            message = messages.receive(receiver, bufsize)
        assert (message.data, message.cred.pid) == (b"", child.pid)


def test_reading_nothing_of_a_stream(pair):
    """Zero bytes of data that are there have a sender."""
    receiver, sender = pair
    messages.enable(receiver)
    sender.send(b"x")
    message = messages.receive(receiver, 0)
    assert (message.data, message.cred) == (b"", own())


@needs_namespaces
def test_sender_in_another_pid_namespace(ends):
    """Pid None beside valid ids, root's too: also of a message without data, if it is one."""
    receiver, sender = ends
    messages.enable(receiver)
    sender.send(b"x")
    call(lambda: become(uid=1001, gid=2001) or sender.send(b"y"))
    datagram = receiver.type != socket.SOCK_STREAM
    if datagram:
        sender.send(b"")

    def inside():
        return [messages.receive(receiver, 100).cred for _ in range(2 + datagram)]

    assert in_pid_namespace(inside) == [Cred(None, 0, 0), Cred(None, 1001, 2001), Cred(None, 0, 0)][: 2 + datagram]


@needs_namespaces
def test_one_overflow_id_is_a_sender(datagrams):
    """Outside of the PID namespace, one id that reads 65534 beside another is an identity; two are not."""
    receiver, sender = datagrams
    uid, gid = overflow()
    for ids in ((uid, 2001), (1001, gid), (uid, gid)):
        call(lambda ids=ids: become(uid=ids[0], gid=ids[1]) or sender.send(b"x"))

    def inside():
        return [messages.receive(receiver, 100).cred for _ in range(3)]

    assert in_pid_namespace(inside) == [Cred(None, uid, 2001), Cred(None, 1001, gid), None]


@needs_namespaces
def test_overflow_ids_are_the_systems(datagrams, tmp_path):
    """They are those that the system says now, not 65534: root may change them. (Here, only this namespace's files.)"""
    receiver, sender = datagrams
    for _ in range(2):
        call(lambda: become(uid=60001, gid=60002) or sender.send(b"x"))

    def inside():
        before = messages.receive(receiver, 100).cred
        for kind, number in (("uid", "60001\n"), ("gid", "60002\n")):
            (tmp_path / kind).write_text(number)
            bind_mount(tmp_path / kind, Path(f"/proc/sys/kernel/overflow{kind}"))
        return before, messages.receive(receiver, 100).cred

    assert in_pid_namespace(inside) == (Cred(None, 60001, 60002), None)


@needs_namespaces
def test_sender_without_a_mapping(datagrams):
    """A stranger to the user namespace alone has a pid, and overflow ids: the reader is told both."""
    receiver, sender = datagrams
    with Child(lambda: become(uid=1001, gid=2001) or sender.send(b"x")) as child:
        child.result()
        assert in_user_namespace("0 0 1", lambda: messages.receive(receiver, 100).cred) == Cred(child.pid, *overflow())


def test_truncated_data(datagrams):
    """The rest of a datagram is cut off, and the flags say so; its sender is whole."""
    receiver, sender = datagrams
    sender.send(b"abcdef")
    message = messages.receive(receiver, 3)
    assert (message.data, message.cred, message.flags) == (b"abc", own(), socket.MSG_TRUNC)


def test_out_of_band_data_has_no_sender(pair):
    """MSG_OOB gives the byte without credentials."""
    receiver, sender = pair
    messages.enable(receiver)
    try:
        sender.send(b"!", socket.MSG_OOB)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP  # a kernel without CONFIG_AF_UNIX_OOB
        return
    message = messages.receive(receiver, 1, socket.MSG_OOB)
    assert (message.data, message.cred, message.flags) == (b"!", None, socket.MSG_OOB)


def test_address(place):
    """The address that the sender is bound to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(place / "receiver"))
        messages.enable(receiver)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            messages.send(sender, b"x", address=str(place / "receiver"))
            assert messages.receive(receiver, 100).address is None
            sender.bind(str(place / "sender"))
            messages.send(sender, b"x", address=str(place / "receiver"))
            assert messages.receive(receiver, 100).address == str(place / "sender")


def test_options_of_a_listener_are_inherited(server):
    """What the listener has enabled before listen() its connections have on."""
    messages.enable(server)
    server.listen()
    with connect(server.getsockname()) as client, server.accept()[0] as conn:
        client.send(b"x")
        assert enabled(conn) == {"creds"}
        assert messages.receive(conn, 100).cred == own()


def test_enable_is_as_given(ends):
    """Each option on or off, as the kernel says."""
    receiver, _ = ends
    messages.enable(receiver)
    assert enabled(receiver) == {"creds"}
    messages.enable(receiver, label=True)
    assert enabled(receiver) == {"creds", "label"}
    messages.enable(receiver, creds=False)
    assert enabled(receiver) == set()


@needs_pidfd
def test_enable_pidfd(ends):
    """Likewise SO_PASSPIDFD."""
    receiver, _ = ends
    messages.enable(receiver, creds=False, pidfd=True, label=True)
    assert enabled(receiver) == {"pidfd", "label"}
    messages.enable(receiver, pidfd=False)
    assert enabled(receiver) == {"creds"}


def test_label_alone(ends):
    """On a stream the kernel gives no label without credentials or pidfd: an error, before anything is changed."""
    receiver, _ = ends
    if receiver.type == socket.SOCK_STREAM:
        messages.enable(receiver)
        with pytest.raises(ValueError, match=r"stream socket .* along with creds or pidfd"):
            messages.enable(receiver, creds=False, label=True)
        assert enabled(receiver) == {"creds"}
    else:
        messages.enable(receiver, creds=False, label=True)
        assert enabled(receiver) == {"label"}


def test_label(datagrams):
    """What this kernel says, with SO_PASSSEC: a label of a module that labels datagrams, or none; and the data."""
    receiver, sender = datagrams
    messages.enable(receiver, label=True)
    sender.send(b"x")
    message = messages.receive(receiver, 100)
    assert (message.data, message.cred) == (b"x", own())
    assert message.label is None or b"\0" not in message.label


FUNCTIONS = {
    "enable": messages.enable,
    "receive": lambda sock: messages.receive(sock, 100),
    "send": lambda sock: messages.send(sock, b"x"),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_other_families(function, kind):
    """TCP and UDP are refused on every kernel, though some let SO_PASSCRED be set there."""
    with socket.socket(socket.AF_INET, kind) as sock:
        with pytest.raises(peercred.NoPeerError, match="only Unix sockets") as caught:
            function(sock)
        assert caught.value.errno == errno.EAFNOSUPPORT


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_closed_socket(function, pair):
    """EBADF."""
    pair[0].close()
    with pytest.raises(OSError, match="should be a Unix socket") as caught:
        function(pair[0])
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("sock", [None, 3, True, "socket", sys.stdin])
def test_not_a_socket(function, sock):
    """Only the standard library's socket, whose sendmsg and recvmsg do the work; the error says what to do."""
    with pytest.raises(TypeError, match=r"not a plain socket\.socket: .*loop\.add_reader, trio.*anyio"):
        function(sock)


def test_timeouts_and_blocking(datagrams):
    """A socket's timeout and blocking mode are the standard library's."""
    receiver, _ = datagrams
    receiver.settimeout(0.01)
    with pytest.raises(TimeoutError):
        messages.receive(receiver, 100)
    receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        messages.receive(receiver, 100)
    receiver.setblocking(True)
    with pytest.raises(BlockingIOError):
        messages.receive(receiver, 100, socket.MSG_DONTWAIT)


def test_waiting_keeps_no_thread_waiting(datagrams):
    """While receive() waits, another thread runs, and sends what it waits for."""
    receiver, sender = datagrams
    thread = threading.Thread(target=sender.send, args=(b"x",))
    got = []
    waiting = threading.Thread(target=lambda: got.append(messages.receive(receiver, 100)))
    waiting.start()
    thread.start()
    thread.join()
    waiting.join()
    assert got[0].cred == own()


def test_signal_handlers_run(datagrams):
    """A handler runs while receive() waits, and may send what it waits for."""
    receiver, sender = datagrams
    previous = signal.signal(signal.SIGALRM, lambda *_: sender.send(b"x"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert messages.receive(receiver, 100).data == b"x"
    finally:
        signal.signal(signal.SIGALRM, previous)


@needs_pidfd
@needs_pidfd_open
def test_pidfd_is_the_sender(ends):
    """The kernel's number of it, and the identity of a pidfd that was opened by pid while it surely lives."""
    receiver, sender = ends
    messages.enable(receiver, pidfd=True)
    with Child(lambda: sender.send(b"x")) as child, messages.receive(receiver, 100) as message:
        assert fdinfo(message.pidfd) == child.pid == message.cred.pid
        assert identity(message.pidfd) == own_identity(child.pid)
        assert not os.get_inheritable(message.pidfd)


@needs_pidfd
def test_pidfd_without_credentials(ends):
    """Each option is on its own."""
    receiver, sender = ends
    messages.enable(receiver, creds=False, pidfd=True)
    sender.send(b"x")
    with messages.receive(receiver, 100) as message:
        assert message.cred is None
        assert fdinfo(message.pidfd) == os.getpid()


@needs_pidfd
def test_early_message_has_no_pidfd(ends):
    """Nothing stamped: no pidfd, and that is no error."""
    receiver, sender = ends
    sender.send(b"x")
    messages.enable(receiver, pidfd=True)
    message = messages.receive(receiver, 100)
    assert (message.pidfd, message.pidfd_error) == (None, None)


@needs_pidfd
def test_peeking_makes_one_more_pidfd(ends):
    """Each belongs to its message."""
    receiver, sender = ends
    messages.enable(receiver, pidfd=True)
    sender.send(b"x")
    with messages.receive(receiver, 100, socket.MSG_PEEK) as first, messages.receive(receiver, 100) as second:
        assert first == second
        assert first.pidfd != second.pidfd
        assert identity(first.pidfd) == identity(second.pidfd)


@needs_pidfd
def test_reaped_sender(ends):
    """A pidfd of nobody, or none and the reason, ESRCH; the credentials are whole."""
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
    """No pidfd, the reason is EMFILE, and a negative number is not a descriptor; data and credentials arrive."""
    receiver, sender = ends
    messages.enable(receiver, pidfd=True)
    sender.send(b"x")
    socket.send_fds(sender, [b"y"], [0, 0])

    def full():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = []
        while isinstance(fd := outcome(os.dup, 0), int):
            taken.append(fd)
        got = [messages.receive(receiver, 1) for _ in range(2)]
        os.close(taken.pop())
        os.close(os.dup(0))  # the one free place is still free
        return [(message.data, message.cred.uid, message.pidfd, message.pidfd_error.errno) for message in got]

    first, second = call(full)
    assert first == (b"x", os.getuid(), None, errno.EMFILE)
    assert second[:3] == (b"y", os.getuid(), None)
    assert second[3] in {errno.EMFILE, errno.EMSGSIZE}


def test_credentials_without_room(datagrams):
    """Squeezed out by a time stamp that the receiver itself has asked for: an error, not a message of nobody."""
    receiver, sender = datagrams
    receiver.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP
    sender.send(b"x")
    with pytest.raises(OSError, match="SO_TIMESTAMP") as caught:
        messages.receive(receiver, 100)
    assert caught.value.errno == errno.EMSGSIZE


FORMS = {
    "plain": ({}, 0, 0),
    "pidfd": ({"pidfd": True}, 0, 0),
    "uninvited descriptors": ({}, 3, 0),
    "pidfd and descriptors": ({"pidfd": True}, 2, 2),
    "pidfd and too many descriptors": ({"pidfd": True}, 3, 1),
}


@needs_pidfd
@pytest.mark.parametrize("form", FORMS)
def test_no_growth(datagrams, form):
    """100,000 messages: neither memory nor descriptors grow."""
    receiver, sender = datagrams
    options, attached, max_fds = FORMS[form]
    messages.enable(receiver, **options)

    def footprint():
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))

    def run(number):
        for _ in range(number):
            messages.send(sender, b"x", fds=[0] * attached)
            messages.receive(receiver, 100, max_fds=max_fds).close()

    run(10_000)  # fills caches and free lists
    memory, descriptors = footprint()
    run(100_000)
    after, descriptors_after = footprint()
    assert descriptors_after == descriptors
    assert after - memory < 1_000_000
