"""A search through the states of sockets, with a model of the kernel.

In every state the answer names the process that the model names, or there is no
answer.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from dataclasses import dataclass, field
from socket import AF_INET, AF_NETLINK, AF_UNIX, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET, SOCK_STREAM
from typing import ClassVar

import pytest

pytest.importorskip("hypothesis")
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from peers import NOBODY, Child, become, disconnect, fdinfo, outcome, raw
from questions import FUNCTIONS, QUESTIONS, Peer, myself

import peercred

UNIX = [(AF_UNIX, SOCK_STREAM), (AF_UNIX, SOCK_SEQPACKET), (AF_UNIX, SOCK_DGRAM)]
OTHERS = [(AF_INET, SOCK_STREAM), (AF_INET, SOCK_DGRAM), (AF_NETLINK, SOCK_RAW)]
ANYWHERE = {AF_UNIX: "", AF_INET: ("127.0.0.1", 0), AF_NETLINK: (0, 0)}

# What a forked process becomes before it acts. Only root can become another.
SAME = {}
STRANGERS = [
    {"uid": (1001, 1002, 1003), "gid": (2001, 2002, 2003), "groups": (5, 7, 3_000_000_000)},
    {"uid": (1001, 0, 1001), "gid": (2001, 0, 2001)},  # as a set-uid-root program
    {"uid": 2**32 - 2, "gid": 2**32 - 2, "groups": tuple(range(3000, 3100))},
]
FORKED = st.sampled_from([SAME, *STRANGERS] if os.geteuid() == 0 else [SAME])
NUMBERS = st.integers(0, 9)
ACTORS = st.none() | FORKED  # None is this process itself

NOT_CONNECTED = (peercred.NoPeerError, errno.ENOTCONN)
NOT_UNIX = (peercred.NoPeerError, errno.EAFNOSUPPORT)


@dataclass(eq=False)
class State:
    """A socket in the model, however many descriptors it has."""

    family: int
    kind: int
    peer: Peer | None = None
    listener: Peer | None = None  # who called listen(2) last
    other: State | None = None  # of a datagram pair
    bound: bool = False
    queue: list[State] = field(default_factory=list)  # connections that wait for accept(2)

    def answer(self) -> Peer | tuple[type[OSError], int]:
        if self.family != AF_UNIX:
            return NOT_UNIX
        if self.peer is None or (self.other is not None and self.other.bound):
            return NOT_CONNECTED
        return self.peer


class Sockets(RuleBasedStateMachine):
    """Steps that change sockets.

    The kernel says whether a step succeeded. The model says who the peer is.
    """

    sockets = Bundle("sockets")
    main_kind: ClassVar[tuple[int, int]]
    met: ClassVar[Counter[str]] = Counter()  # how often which answer was due

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[socket.socket, State] = {}
        self.children: list[Child] = []
        self.reaped: set[int] = set()
        self.by_uid = peercred.AllowList(uids=range(2**32 - 1))
        self.by_gid = peercred.AllowList(gids=range(2**32 - 1))
        self.empty = peercred.AllowList()

    def teardown(self) -> None:
        for sock in self.states:
            sock.close()
        for child in self.children:
            child.__exit__(None)

    def known(self, sock: socket.socket, state: State) -> socket.socket:
        sock.setblocking(False)
        self.states[sock] = state
        return sock

    def one_of(self, which, condition):
        found = [sock for sock, state in self.states.items() if condition(sock, state)]
        return found[which % len(found)] if found else None

    def forked(self, ids, function):
        """What the function returns in a forked process with these ids.

        Afterwards, that process has none of the sockets.
        """

        def there():
            if ids:
                become(**ids)
            try:
                return myself(), function()
            finally:
                for sock in self.states:
                    sock.close()

        child = Child(there)
        self.children.append(child)
        return child.result()

    def acting(self, actor, function, *args) -> tuple[Peer, bool]:
        """Who did it, and whether it succeeded."""
        if actor is None:
            who, result = myself(), outcome(function, *args)
        else:
            who, result = self.forked(actor, lambda: outcome(function, *args))
        return who, result is None

    @initialize(target=sockets, other=st.sampled_from(UNIX + OTHERS), actor=ACTORS, listens=st.booleans())
    def start(self, other, actor, listens):
        """Start with a pair and a server, so that a few steps go far.

        There are two types of socket, so that steps often find a partner.
        """
        self.kinds = [self.main_kind, other]
        made = [self.known(socket.socket(*kind), State(*kind)) for kind in (other, other, self.main_kind)]
        made[0].bind(ANYWHERE[other[0]])
        made += self.pair(self.main_kind, actor)
        made.append(self.known(socket.socket(*self.main_kind), State(*self.main_kind)))
        made[-1].bind("")
        if listens:
            self.listen(made[-1], 1, actor)
        return multiple(*made)

    @rule(target=sockets, which=st.integers(0, 1))
    def make(self, which):
        family, kind = self.kinds[which]
        return self.known(socket.socket(family, kind), State(family, kind))

    @precondition(lambda self: self.kinds[1] in UNIX)
    @rule(target=sockets, which=st.integers(0, 1), actor=ACTORS)
    def make_pair(self, which, actor):
        return multiple(*self.pair(self.kinds[which], actor))

    def pair(self, family_and_kind, actor):
        ours, theirs = socket.socketpair()

        def make():
            one, two = socket.socketpair(*family_and_kind)
            with one, two:
                socket.send_fds(theirs, [b"x"], [one.fileno(), two.fileno()])

        with ours, theirs:
            maker, succeeded = self.acting(actor, make)
            assert succeeded
            fds = socket.recv_fds(ours, 1, 2)[1]
        states = [State(*family_and_kind, peer=maker) for _ in fds]
        if family_and_kind[1] == SOCK_DGRAM:
            states[0].other, states[1].other = states[1], states[0]
        return [self.known(socket.socket(fileno=fd), state) for fd, state in zip(fds, states, strict=True)]

    @rule(sock=sockets)
    def bind(self, sock):
        outcome(sock.bind, ANYWHERE[sock.family])

    @rule(sock=sockets, backlog=st.integers(0, 2), actor=ACTORS)
    def serve(self, sock, backlog, actor):
        outcome(sock.bind, ANYWHERE[sock.family])
        self.listen(sock, backlog, actor)

    def listen(self, sock, backlog, actor):
        if sock.type == SOCK_DGRAM:
            actor = None  # it will fail
        who, succeeded = self.acting(actor, sock.listen, backlog)
        if succeeded:
            self.states[sock].listener = who

    @rule(sock=sockets, which=NUMBERS, actor=ACTORS)
    def connect(self, sock, which, actor):
        to = self.one_of(which, lambda to, state: state.family == sock.family and to.getsockname())
        if to is None:
            return
        address = to.getsockname()
        # An accepted socket has the address of the one that listens.
        listening = self.one_of(which, lambda it, state: state.listener and it.getsockname() == address)
        state, target = self.states[sock], self.states[listening or to]
        if target.listener is None:
            actor = None  # it makes no difference
        who, succeeded = self.acting(actor, sock.connect, address)
        if not succeeded or state.family != AF_UNIX:
            return
        if state.kind == SOCK_DGRAM:
            state.peer = None
        else:
            state.peer = target.listener
            target.queue.append(State(AF_UNIX, state.kind, peer=who))

    @rule(sock=sockets)
    def connect_to_unspec(self, sock):
        if outcome(disconnect, sock) is None:
            self.states[sock].peer = self.states[sock].listener = None  # a TCP socket listens no more

    @rule(target=sockets, which=NUMBERS)
    def accept(self, which):
        listener = self.one_of(which, lambda _, state: state.listener)
        accepted = outcome(listener.accept) if listener else ()
        if not accepted or accepted[0] is BlockingIOError:
            return multiple()
        assert isinstance(accepted[0], socket.socket), accepted
        state = self.states[listener]
        unix = state.family == AF_UNIX
        return self.known(accepted[0], state.queue.pop(0) if unix else State(state.family, state.kind))

    @rule(sock=sockets, how=st.sampled_from([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]))
    def shutdown(self, sock, how):
        outcome(sock.shutdown, how)

    @rule(sock=consumes(sockets))
    def close(self, sock):
        sock.close()
        del self.states[sock]
        for function in (*FUNCTIONS, self.by_gid.require):
            assert outcome(function, sock) == (OSError, errno.EBADF)

    @rule(target=sockets, sock=sockets)
    def dup(self, sock):
        return self.known(sock.dup(), self.states[sock])

    @rule(sock=sockets)
    def send(self, sock):
        if outcome(sock.send, b"x") == (ConnectionRefusedError, errno.ECONNREFUSED):
            self.states[sock].peer = None  # a datagram socket, whose other end is closed

    @rule(sock=sockets, which=NUMBERS)
    def send_to(self, sock, which):
        to = self.one_of(which, lambda to, state: state.family == sock.family and to.getsockname())
        if to is not None:
            outcome(sock.sendto, b"x", to.getsockname())

    @rule(sock=sockets)
    def receive(self, sock):
        outcome(sock.recv, 10)

    @rule(sock=sockets, on=st.booleans())
    def pass_credentials(self, sock, on):
        """With this option, a socket that sends or connects gets an address."""
        outcome(sock.setsockopt, socket.SOL_SOCKET, socket.SO_PASSCRED, on)

    @precondition(lambda self: self.children)
    @rule(which=NUMBERS, reap=st.booleans())
    def exit(self, which, reap):
        child = self.children[which % len(self.children)]
        if child.pid not in self.reaped:
            child.end()
            if reap:
                child.reap()
                self.reaped.add(child.pid)

    @rule(ids=FORKED)
    def ask_elsewhere(self, ids):
        """Who asks makes no difference."""
        _, answers = self.forked(ids, lambda: [outcome(peercred.read, sock) for sock in self.states])
        for sock, answer in zip(self.states, answers, strict=True):
            expected = self.states[sock].answer()
            assert answer == (expected.cred if isinstance(expected, Peer) else expected)

    @invariant()
    def everyone_is_who_the_model_says(self):
        for sock, state in self.states.items():
            state.bound = state.family == AF_UNIX and bool(sock.getsockname())
        for sock, state in self.states.items():
            expected = state.answer()
            if isinstance(expected, Peer):
                self.check_peer(sock, expected)
            else:
                self.check_refused(sock, expected)

    def check_refused(self, sock, expected):
        if raw(sock) != NOBODY:
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            self.met["a listener" if listens else "a pair that is one no more"] += 1
        for function in (*FUNCTIONS, self.by_uid.require, self.by_gid.require, self.empty.require):
            assert outcome(function, sock) == expected

    def check_peer(self, sock, expected):
        cred = expected.cred
        self.met["a peer" if cred.pid == os.getpid() else "a peer elsewhere"] += 1
        assert self.by_uid.require(sock) == self.by_gid.require(sock) == cred
        assert outcome(self.empty.require, sock) == (peercred.NotAllowedError, errno.EACCES)
        for question in QUESTIONS:
            if question.opens and question.supported and cred.pid in self.reaped:
                self.check_gone(question, sock)
            else:
                question.assert_about(sock, expected)

    def check_gone(self, question, sock):
        """No process is opened. A pidfd, if there is one, says that too."""
        answer = outcome(question.function, sock)
        if question.name == "open_pidfd" and isinstance(answer, int):
            pid = fdinfo(answer)
            os.close(answer)
            assert pid == -1
        else:
            assert answer == (ProcessLookupError, errno.ESRCH)


TRAPS = {
    SOCK_STREAM: "a listener",
    SOCK_SEQPACKET: "a listener",
    SOCK_DGRAM: "a pair that is one no more",
}


@pytest.mark.parametrize("kind", TRAPS, ids=lambda kind: kind.name)
def test_every_state_has_the_answer_of_the_model(kind):
    """After any steps, by any users, each socket names its peer or has none."""

    class Here(Sockets):
        main_kind = AF_UNIX, kind
        met: ClassVar[Counter[str]] = Counter()

    examples = settings.default.max_examples // 5
    run_state_machine_as_test(Here, settings=settings(max_examples=examples, stateful_step_count=25))
    assert Here.met.keys() >= {"a peer", "a peer elsewhere", TRAPS[kind]}
