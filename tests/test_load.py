"""Many calls: afterwards no descriptor, no memory and no reference is left, whether they succeed or fail.

And many connections: a server that threads or selects names each of its
clients, of eight users, and refuses those that it must.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import errno
import gc
import os
import pickle
import selectors
import socket
import socketserver
import struct
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path

import pytest
from peers import LIBC, Child, become, connect, kernel_has_pidfd, needs_cpython, needs_root, outcome

import peercred
from peercred import AllowList, Cred, messages
from peercred._libc import lib

CALLS = 500  # of a function, and of one thing to ask about; the effort multiplies them
PIDFD = kernel_has_pidfd()


class Malloc(ctypes.Structure):
    """struct mallinfo2."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "kc",
        )
    )


def memory():
    """Bytes that are allocated from libc; 0 where it does not tell (musl, and glibc before 2.33)."""
    if not hasattr(LIBC, "mallinfo2"):
        return 0
    LIBC.mallinfo2.restype = Malloc
    info = LIBC.mallinfo2()
    return info.uordblks + info.hblkhd


needs_mallinfo = pytest.mark.skipif(not hasattr(LIBC, "mallinfo2"), reason="needs mallinfo2, of glibc 2.33")


def footprint():
    """Open descriptors; bytes; blocks that Python has; references, if this Python counts them."""
    return (
        len(os.listdir("/proc/self/fd")),
        memory(),
        sys.getallocatedblocks(),
        getattr(sys, "gettotalrefcount", int)(),
    )


def leaves_nothing(function, arguments, calls):
    """Call it many times with these arguments. What it raises is as good an answer as what it returns."""

    def run(number):
        for _ in range(number):
            with contextlib.suppress(OSError, TypeError, ValueError):
                function(*arguments)

    counted = [argument for argument in arguments if argument is not None]  # which coverage refers to ever more often
    gc.freeze()  # what is there already need not be looked through again and again
    try:
        run(calls // 4)  # fills caches and free lists
        gc.collect()
        references = list(map(sys.getrefcount, counted))
        before = footprint()
        run(calls)
        gc.collect()
        after = footprint()
        assert list(map(sys.getrefcount, counted)) == references
    finally:
        gc.unfreeze()
    descriptors, taken, blocks, total = (new - old for new, old in zip(after, before, strict=True))
    assert descriptors == 0
    # Python's own bookkeeping takes some, but not one for each call.
    assert blocks < calls / 2
    assert total < calls / 2
    assert taken < calls * 8  # malloc(1) takes 24


class WithFileno:
    def __init__(self, answer):
        self.answer = answer

    def fileno(self):
        return self.answer


class WithExtraInfo:
    def __init__(self, answer):
        self.answer = answer

    def get_extra_info(self, name, default=None):
        return self.answer


class Closed:
    def fileno(self):
        return self.gone.fileno()


def two_ends(stack, kind=socket.SOCK_STREAM):
    return [stack.enter_context(sock) for sock in socket.socketpair(socket.AF_UNIX, kind)]


def connection(stack):
    return two_ends(stack)[0]


def listener(stack):
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind("")
    sock.listen()
    return sock


def peer_in_many_groups(stack):
    """More groups than there is room for at first, if root can have them."""
    server = listener(stack)

    def client():
        if os.geteuid() == 0:
            become(uid=1001, gid=2001, groups=tuple(range(100_000, 101_000)))
        return connect(server.getsockname()).detach()

    with Child(client) as child:
        child.result()
        return stack.enter_context(server.accept()[0])


def closed(stack):
    sock = connection(stack)
    sock.close()
    return sock


def tcp(stack):
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return stack.enter_context(socket.create_connection(server.getsockname()))


CONNECTIONS = {
    "connected": connection,
    "its number": lambda stack: connection(stack).fileno(),
    "a peer in many groups": peer_in_many_groups,
    "with fileno()": lambda stack: WithFileno(connection(stack).fileno()),
    "a transport": lambda stack: WithExtraInfo(connection(stack)),
    "closed": closed,
    "a closed wrapper": lambda stack: Closed(),
    "a closed transport": lambda stack: WithExtraInfo(None),
    "listening": listener,
    "unconnected": lambda stack: stack.enter_context(socket.socket(socket.AF_UNIX)),
    "a datagram socket": lambda stack: stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
    "TCP": tcp,
    "no socket": lambda stack: stack.enter_context(open(os.devnull)),  # noqa: SIM115
    "-1": lambda stack: -1,
    "too large a number": lambda stack: 2**40,
    "a str": lambda stack: "socket",
    "None": lambda stack: None,
    "True": lambda stack: True,
    "fileno() is no int": lambda stack: WithFileno("5"),
}

QUESTIONS = {
    "read": peercred.read,
    "read_groups": peercred.read_groups,
    "read_label": peercred.read_label,
    "open_pidfd": lambda conn: os.close(peercred.open_pidfd(conn)),
    "require(users)": AllowList(uids=range(2**31)).require,
    "require(groups)": AllowList(gids=range(2**31)).require,
    "require(nobody)": AllowList().require,
}


@needs_cpython("for its reference counts")
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("conn", CONNECTIONS)
def test_questions(question, conn, effort):
    """Each question of a connection, answered or refused."""
    with contextlib.ExitStack() as stack:
        leaves_nothing(QUESTIONS[question], [CONNECTIONS[conn](stack)], CALLS * effort)


VALUES = {
    "Cred": (Cred, 1, 1000, 1000),
    "Cred without a pid": (Cred, None, 1000, 1000),
    "Cred of no int": (Cred, 1, "root", 1000),
    "Cred of nobody": (Cred, 1, 2**32 - 1, 1000),
    "Cred, copied": (copy.deepcopy, Cred(1, 70_000, 70_000)),
    "Cred, pickled": (lambda cred: pickle.loads(pickle.dumps(cred)), Cred(1, 70_000, 70_000)),
    "Cred, in a set": (lambda cred: {cred, Cred(2, 3, 4)}, Cred(1, 70_000, 70_000)),
    "Cred, shown": (repr, Cred(1, 70_000, 70_000)),
    "AllowList": (AllowList, {0, 70_000}, [70_001]),
    "AllowList of a range": (AllowList, range(70_000), range(70_000)),
    "AllowList of names": (AllowList, ["root"], ["root"]),
    "AllowList of an unknown name": (AllowList, ["root", "no such user"], []),
    "AllowList of no iterable": (AllowList, 70_000, None),
    "AllowList of wrong ids": (AllowList, [70_000, 2**32], [-1]),
    "AllowList of the overflow id": (AllowList, [int(Path("/proc/sys/kernel/overflowuid").read_text())]),
    "AllowList, copied": (copy.copy, AllowList([70_000], [70_001])),
    "AllowList, pickled": (lambda allowed: pickle.loads(pickle.dumps(allowed)), AllowList([70_000], [70_001])),
    "AllowList, shown and compared": (lambda one: (repr(one), one == AllowList()), AllowList([70_000], [70_001])),
    "permits": (AllowList({1}, {2}).permits, Cred(1, 70_000, 70_000), (1, 70_000, 70_001)),
    "permits what it has": (AllowList({1}, {70_000}).permits, Cred(1, 70_000, 70_000), (1, 70_000, 70_001)),
    "permits None": (AllowList().permits, None),
    "permits no Cred": (AllowList().permits, "root"),
    "permits no groups": (AllowList().permits, Cred(1, 70_000, 70_000), [70_000, "root"]),
}


@needs_cpython("for its reference counts")
@pytest.mark.parametrize("value", VALUES)
def test_values(value, effort):
    """Making, copying and asking of values, whether they can be made or not."""
    function, *arguments = VALUES[value]
    leaves_nothing(function, arguments, CALLS * effort)


class Plain(socket.socket):
    """A subclass that leaves recvmsg() alone."""


class OfItsOwn(socket.socket):
    def recvmsg(self, *arguments):
        raise AssertionError("it must not be called")


def receives(number=0, *, max_fds=0, end=None, prepare=messages.enable, bufsize=100, flags=0):
    """Send a message with so many descriptors, and receive it."""

    def make(stack):
        receiver, sender = two_ends(stack, socket.SOCK_DGRAM)
        prepare(receiver)
        payload = struct.pack(f"{number}i", *[0] * number)
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, payload)] if number else []

        def function(receiver):
            sender.sendmsg([b"data"], control)
            try:
                message = messages.receive(receiver, bufsize, flags, max_fds=max_fds)
            finally:
                if flags:
                    receiver.recv(100)
            end(message) if end else message.close()

        return function, receiver

    return make


def taken_over(message):
    for fd in (message.detach_pidfd(), *message.detach_fds()):
        if fd is not None:
            os.close(fd)


def not_copied(message):
    with message:
        pickle.dumps(message)


def time_stamped(sock):
    """It takes the room of the credentials."""
    messages.enable(sock)
    sock.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP


def with_everything(sock):
    messages.enable(sock, pidfd=PIDFD, label=True)


def with_a_pidfd(sock):
    messages.enable(sock, pidfd=PIDFD)


def dropped(stack):
    function, receiver = receives(2, max_fds=2, prepare=with_everything, end=id)(stack)

    def quietly(receiver):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            function(receiver)

    return quietly, receiver


def sends(data, *, kind=socket.SOCK_DGRAM, **options):
    """Send a message, and take it off the queue if it is sent."""

    def make(stack):
        receiver, sender = two_ends(stack, kind)
        sender.setblocking(False)

        def function(sender, data):
            messages.send(sender, data, **options)
            receiver.recv(100)

        return function, sender, data

    return make


def of(function, make):
    return lambda stack: (function, make(stack))


def peek(sock):
    return messages.receive(sock, 100, socket.MSG_DONTWAIT)


def say(sock):
    return messages.send(sock, b"x", cred=Cred(None, 0, 0), fds=[0], flags=socket.MSG_DONTWAIT)


def at_the_end(stack):
    receiver, sender = two_ends(stack)
    messages.enable(receiver)
    sender.close()
    return receiver


ME = Cred(os.getpid(), os.getuid(), os.getgid())
NO_SOCKETS = {
    "closed": closed,
    "TCP": tcp,
    "a number": lambda stack: connection(stack).fileno(),
    "None": lambda stack: None,
    "a socket of its own": lambda stack: stack.enter_context(OfItsOwn(socket.AF_UNIX)),
}
EXCHANGES = {
    "receive": receives(),
    "receive without options": receives(prepare=lambda sock: None),
    "receive a part": receives(bufsize=2),
    "receive and peek": receives(2, max_fds=1, flags=socket.MSG_PEEK),
    "receive descriptors": receives(3, max_fds=3),
    "receive too many descriptors": receives(3, max_fds=1),
    "receive uninvited descriptors": receives(253),
    "receive a pidfd": receives(prepare=with_a_pidfd),
    "receive a pidfd and descriptors": receives(2, max_fds=2, prepare=with_everything),
    "receive strays": receives(3, prepare=with_everything),
    "receive cut-off credentials": receives(2, max_fds=2, prepare=time_stamped),
    "receive and take over": receives(2, max_fds=2, prepare=with_everything, end=taken_over),
    "receive and drop": dropped,
    "receive and fail to pickle": receives(2, max_fds=2, prepare=with_everything, end=not_copied),
    "receive and pickle": receives(end=lambda message: pickle.loads(pickle.dumps(message))),
    "receive with a wrong max_fds": receives(max_fds=254, flags=socket.MSG_PEEK),
    "receive with a wrong bufsize": receives(bufsize=-1, flags=socket.MSG_PEEK),
    "receive nothing": of(peek, connection),
    "receive the end of a stream": of(peek, at_the_end),
    "send": sends(b"data"),
    "send by a stream": sends(b"data", kind=socket.SOCK_STREAM),
    "send buffers": sends([b"da", bytearray(b"ta")]),
    "send with credentials": sends(b"data", cred=ME),
    "send with descriptors": sends(b"data", fds=[0, 1, 2]),
    "send both": sends(b"data", cred=ME, fds=[0]),
    "send forged credentials": sends(b"data", cred=Cred(2**31 - 1, 1, 1)),
    "send what is not open": sends(b"data", fds=[0, 2**31 - 1]),
    "send what is no descriptor": sends(b"data", fds=[0, "1"]),
    "send too many descriptors": sends(b"data", fds=[0] * 254),
    "send text": sends("data"),
    "send no data": sends(b"", kind=socket.SOCK_STREAM, cred=ME),
    "send too much": sends(bytes(2**20)),
    "send to nobody": sends(b"data", address="/nowhere/at all"),
    "enable": lambda stack: (messages.enable, connection(stack)),
    "enable a subclass": lambda stack: (messages.enable, stack.enter_context(Plain(socket.AF_UNIX))),
    "enable and disable": lambda stack: (
        lambda sock: [messages.enable(sock, creds=on, label=on, fds=on) for on in (True, False)],
        connection(stack),
    ),
    "enable a label alone": lambda stack: (
        lambda sock: messages.enable(sock, creds=False, label=True),
        connection(stack),
    ),
    **{
        f"{name} of {state}": of(function, make)
        for name, function in {"enable": messages.enable, "receive": peek, "send": say}.items()
        for state, make in NO_SOCKETS.items()
    },
}


@needs_cpython("for its reference counts")
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_exchanges(exchange, effort):
    """Messages of every form, sent and received or refused."""
    with contextlib.ExitStack() as stack:
        function, *arguments = EXCHANGES[exchange](stack)
        leaves_nothing(function, arguments, CALLS * effort)


@needs_cpython("for its reference counts")
@pytest.mark.parametrize(
    "leak", ["a descriptor", "a block", "a reference", pytest.param("memory of C", marks=needs_mallinfo)]
)
def test_the_measure_itself(leak):
    """The counter-test: what does leave something behind is found."""
    kept, opened = [], []
    leaky = {
        "a descriptor": lambda argument: opened.append(os.dup(0)),
        "a block": lambda argument: kept.append(object()),
        "a reference": kept.append,
        "memory of C": lambda argument: LIBC.strdup(bytes(1).rjust(10_000, b"x")),
    }[leak]
    with pytest.raises(AssertionError):
        leaves_nothing(leaky, [object()], CALLS)
    for fd in opened:
        os.close(fd)


# A server, and its clients of eight users

HELLO = struct.Struct("iII")  # pid, effective uid and gid, as the client reads them of itself
NOBODY_HAS = 9_999_999
# What each of the eight users is let in for, if it is.
WELCOME = ["its uid", "its gid", "a group", "the last of many groups", *["not at all"] * 4]


def ids_of(number):
    groups = {2: (NOBODY_HAS - 2, NOBODY_HAS - 1), 3: tuple(range(200_000, 200_100)), 4: (4,), 5: tuple(range(100))}
    return {
        "uid": (5000 + number, 6000 + number, 7000 + number),  # real, effective and saved
        "gid": (5000 + number, 8000 + number, 7000 + number),
        "groups": groups.get(number, ()),
    }


def the_list():
    """The real and the saved ids of those that are to be refused are on it, as the wrong kind of ids."""
    return AllowList(
        uids={6000, *range(5000, 5008), *range(7000, 7008)},
        gids={8001, NOBODY_HAS - 1, 200_099, *range(5000, 5008), *range(7000, 7008), NOBODY_HAS},
    )


class Judge:
    """Asks who the client is, and compares with what it says of itself."""

    def __init__(self):
        self.allowed, self.wrong, self.counts, self.lock = the_list(), [], Counter(), threading.Lock()

    def judge(self, conn):
        """Reads the client's hello; returns the verdict that goes back to it."""
        said = Cred(*HELLO.unpack(conn.recv(HELLO.size, socket.MSG_WAITALL)))
        verdict = outcome(self.allowed.require, conn)
        read = outcome(peercred.read, conn)
        expected = said if WELCOME[said.uid - 6000] != "not at all" else (PermissionError, errno.EACCES)
        with self.lock:
            self.counts[said.uid, isinstance(verdict, Cred)] += 1
            if (verdict, read) != (expected, said):
                self.wrong.append((said, read, verdict))
        return b"in" if isinstance(verdict, Cred) else b"no"


@contextlib.contextmanager
def threading_server(path, judge):
    """socketserver's, with a thread for each connection."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.settimeout(60)
            self.request.sendall(judge.judge(self.request))

    class Server(socketserver.ThreadingUnixStreamServer):
        request_queue_size = 200
        daemon_threads = False

    with Server(path, Handler) as server:

        def serve():
            server.serve_forever(poll_interval=0.05)

        yield serve
        server.shutdown()


@contextlib.contextmanager
def selecting_server(path, judge):
    """One thread, for all connections at once."""
    with socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as selector:
        server.bind(path)
        server.listen(200)
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)
        stopped = threading.Event()

        def serve():
            try:
                while not stopped.is_set():
                    for key, _ in selector.select(0.05):
                        if key.fileobj is server:
                            with contextlib.suppress(BlockingIOError):
                                selector.register(server.accept()[0], selectors.EVENT_READ)
                        else:
                            selector.unregister(key.fileobj)
                            with key.fileobj as conn:
                                conn.sendall(judge.judge(conn))
            finally:
                stopped.set()

        yield serve
        stopped.set()


@needs_root
@pytest.mark.parametrize("serving", [threading_server, selecting_server])
def test_clients_of_eight_users(serving, place, effort):
    """Each client is named as it names itself, and let in or refused by its own ids, however many come at once."""
    path, judge = str(place / "socket"), Judge()
    batches, at_once = 10 * effort, 5

    def visit(number):
        become(**ids_of(number))
        os.close(arrived)
        os.read(gate, 1)
        verdicts = Counter()
        for _ in range(batches):
            clients = [connect(path) for _ in range(at_once)]
            for client in clients:
                client.sendall(HELLO.pack(os.getpid(), os.geteuid(), os.getegid()))
            for client in reversed(clients):
                client.settimeout(60)
                verdicts[client.recv(10)] += 1
                client.close()
        return verdicts

    gate, arrived = os.pipe()
    with serving(path, judge) as serve, contextlib.ExitStack() as stack:
        os.chmod(path, 0o666)
        children = [stack.enter_context(Child(lambda number=number: visit(number))) for number in range(8)]
        thread = threading.Thread(target=serve, daemon=True)  # only now: they are forked
        thread.start()
        os.close(gate)
        os.close(arrived)
        verdicts = [child.result() for child in children]
    thread.join(60)
    assert not thread.is_alive()
    assert judge.wrong == []
    total = batches * at_once
    assert verdicts == [{b"no" if why == "not at all" else b"in": total} for why in WELCOME]
    assert judge.counts == {(6000 + number, why != "not at all"): total for number, why in enumerate(WELCOME)}


def test_not_everything_is_refused():
    """The counter-test to what those calls raise: this kernel names a peer, and a sender."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with receiver, sender:
        messages.enable(receiver)
        assert receiver.getsockopt(socket.SOL_SOCKET, lib.SO_PASSCRED)
        messages.send(sender, b"x", cred=ME)
        assert messages.receive(receiver, 1).cred == peercred.read(receiver) == ME
