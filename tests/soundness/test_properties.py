"""Any Python object may be passed as any argument.

The answer is right or the exception is a documented one, and no descriptor is
lost.
"""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

pytest.importorskip("hypothesis")
from hypothesis import assume, given
from hypothesis import strategies as st
from peers import open_descriptors, overflow_ids, own_effective
from questions import QUESTIONS, myself

import peercred
from peercred import messages

EVERYONE = range(2**32 - 1)


class OwnError(Exception):
    """What a hostile object raises, besides the usual exceptions."""


ERRORS = [OwnError, OSError, TypeError, ValueError, AttributeError, KeyError, OverflowError, MemoryError, SystemError]
ERRORS += [RecursionError, KeyboardInterrupt, GeneratorExit]

NUMBERS = st.one_of(  # none of them is an open descriptor
    st.integers(max_value=-1),
    st.integers(min_value=2**20),
    st.sampled_from(
        [-1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64, -(2**31), -(2**63) - 1, 10**4000]
    ),
)
RUBBISH = st.one_of(
    NUMBERS,
    st.none(),
    st.booleans(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=9),
    st.binary(max_size=9),
    st.lists(NUMBERS | st.text(max_size=3), max_size=3),
    st.sets(NUMBERS, max_size=3),
    st.dictionaries(st.text(max_size=3), NUMBERS, max_size=3),
    st.sampled_from([object, object(), int, len, ..., "\0", "\ud800", "root", "7", b"x"]),
    st.sampled_from([range(0), range(3), range(10**30), range(-1, 2), range(2**32), memoryview(b"xyz")[::2]]),
    st.builds(bytearray, st.binary(max_size=9)),
)
METHODS = ["fileno", "get_extra_info", "__index__", "__int__", "__iter__", "__next__", "__len__", "__length_hint__"]
METHODS += ["__eq__", "__hash__", "__bool__", "__lt__", "__le__", "__gt__", "__ge__", "__or__", "__and__", "__repr__"]
METHODS += ["__getattr__", "__call__", "__buffer__", "__contains__", "__getitem__", "__fspath__", "isdecimal"]
DEEDS = ["raise", "rubbish", "descriptor", "close", "replace", "ask again", "itself"]
BASES = [object, int, str, bytes, list, tuple, frozenset, float]


class World:
    """What hostile objects use, and the exceptions that they raised."""

    def __init__(self, stack):
        self.pair = [stack.enter_context(sock) for sock in socket.socketpair()]
        self.other = [stack.enter_context(sock) for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)]
        self.tcp = stack.enter_context(socket.socket())
        for sock in (*self.pair, *self.other, self.tcp):
            sock.setblocking(False)
        self.raised = []
        self.depth = 0

    def do(self, deed, error, value, itself):
        if deed == "raise":
            self.raised.append(error())
            raise self.raised[-1]
        if deed == "rubbish":
            return value
        if deed == "itself":
            return itself
        sock = self.pair[0]
        if deed == "close":
            number = sock.fileno()
            sock.close()
            return number
        if deed == "replace" and sock.fileno() >= 0:
            os.dup2(self.tcp.fileno() if value is None else self.other[0].fileno(), sock.fileno(), inheritable=False)
        if deed == "ask again" and self.depth == 0:
            self.depth = 1
            try:
                for function in (*(question.ask for question in QUESTIONS), peercred.AllowList(gids=EVERYONE).require):
                    for conn in (itself, sock):
                        with contextlib.suppress(Exception):
                            function(conn)
            finally:
                self.depth = 0
        return sock.fileno()


@st.composite
def makers(draw):
    """A function that makes an object with a few methods that misbehave."""
    base = draw(st.sampled_from(BASES))
    names = draw(st.lists(st.sampled_from(METHODS), min_size=1, max_size=4, unique=True))
    deeds = {name: (draw(st.sampled_from(DEEDS)), draw(st.sampled_from(ERRORS)), draw(RUBBISH)) for name in names}
    lie = draw(st.sampled_from([None, None, None, int, str, socket.socket, peercred.Cred]))

    def make(world):
        def method(deed, error, value):
            return lambda self, *args, **kwargs: world.do(deed, error, value, self)

        body = {name: method(*deed) for name, deed in deeds.items()}
        if lie is not None:
            body["__class__"] = property(lambda self: lie)
        return type("Hostile", (base,), {"__hash__": base.__hash__, **body})()

    return make


@st.composite
def anything(draw):
    """A function that makes rubbish, a hostile object, or a list of one."""
    kind = draw(st.sampled_from(["hostile", "rubbish", "list", "socket", "number"]))
    value = draw(makers() if kind in ("hostile", "list") else RUBBISH)
    return lambda world: {
        "hostile": lambda: value(world),
        "rubbish": lambda: value,
        "list": lambda: [value(world)],
        "socket": lambda: world.pair[0],
        "number": lambda: world.pair[0].fileno(),
    }[kind]()


@contextlib.contextmanager
def world():
    """Afterwards, the same descriptors are open as before."""
    before = open_descriptors()
    with contextlib.ExitStack() as stack:
        yield World(stack)
    assert open_descriptors() == before


def attempt(world, function, *args, **kwargs):
    """A list with its answer.

    The list is empty if it raised a documented exception, or the very exception
    that a hostile object raised.
    """
    try:
        return [function(*args, **kwargs)]
    except (OSError, TypeError, ValueError):
        return []
    except BaseException as error:
        if any(error is each for each in world.raised):
            return []
        raise


@given(anything())
def test_any_object_as_a_connection(make):
    """Each function names this process, the only peer in reach, or raises."""
    for question in QUESTIONS:
        with world() as here:
            for answer in attempt(here, question.function, make(here)):
                assert question.describes(answer, myself()), answer
                question.drop(answer)
    for allowed in (peercred.AllowList(uids=EVERYONE), peercred.AllowList(gids=EVERYONE)):
        with world() as here:
            for answer in attempt(here, allowed.require, make(here)):
                assert answer == own_effective()
    with world() as here:
        assert attempt(here, peercred.AllowList().require, make(here)) == []


@given(anything(), anything(), anything())
def test_any_object_as_an_id(make, make_another, make_a_third):
    """Cred and AllowList hold possible ids, and a decision is True or False."""
    with world() as here:
        things = [each(here) for each in (make, make_another, make_a_third)]
        for cred in attempt(here, peercred.Cred, *things):
            assert cred.pid is None or 1 <= cred.pid <= 2**31 - 1
            assert {type(cred.uid), type(cred.gid)} == {int}
            assert 0 <= cred.uid < 2**32 - 1
            assert 0 <= cred.gid < 2**32 - 1
        for allowed in [
            *attempt(here, peercred.AllowList, things[0], things[1]),
            *attempt(here, peercred.AllowList, [things[0]], {1000}),
            *attempt(here, peercred.AllowList, gids=[things[0], things[1]]),
        ]:
            for ids in (allowed.uids, allowed.gids):
                assert type(ids) in (frozenset, range)
                assert type(ids) is range or all(type(each) is int and 0 <= each < 2**32 - 1 for each in ids)
            for answer in [
                *attempt(here, allowed.permits, own_effective(), things[2]),
                *attempt(here, allowed.permits, things[1], [things[2]]),
            ]:
                assert type(answer) is bool
        for answer in attempt(here, peercred.AllowList().permits, *things[:2]):
            assert answer is False


@given(anything(), anything(), anything())
def test_any_object_to_receive_with(make, make_another, make_a_third):
    """receive() returns a Message of this process, or raises."""
    for name in ("sock", "bufsize", "flags", "max_fds"):
        with world() as here:
            receiver, sender = here.pair
            messages.enable(receiver)
            with open("/dev/null", "rb") as file:
                socket.send_fds(sender, [b"data"], [file.fileno()])
            given = {"sock": receiver, "bufsize": 9, "flags": 0, "max_fds": 3, name: make(here)}
            if not reasonable(given["bufsize"]):
                continue
            for message in attempt(here, messages.receive, given.pop("sock"), **given):
                with message:
                    assert type(message) is messages.Message
                    assert b"data".startswith(message.data)
                    assert message.cred in (own_effective(), None)
                    assert len(message.fds) <= 3 or name == "max_fds"
                    assert all(type(fd) is int and not os.get_inheritable(fd) for fd in message.fds)
            attempt(here, messages.enable, make(here), creds=make_another(here), pidfd=make_a_third(here))


def reasonable(bufsize):
    """Leave out sizes for which there may or may not be enough memory."""
    return not (issubclass(type(bufsize), int) and 2**20 < int.__index__(bufsize) < 2**63)


@given(anything(), anything())
def test_any_object_to_send(make, make_another):
    """send() returns how many bytes arrive at most, or raises."""
    for name in ("sock", "data", "cred", "fds", "flags", "address"):
        with world() as here:
            sender, receiver = here.pair
            given = {"sock": sender, "data": b"data", "flags": 0, "fds": [], name: make(here)}
            given["fds"] = [make_another(here)] if name == "data" else given["fds"]
            for count in attempt(here, messages.send, given.pop("sock"), given.pop("data"), **given):
                assert type(count) is int
                with contextlib.suppress(BlockingIOError):
                    # None arrive if another socket took the sender's place.
                    assert len(receiver.recv(2**16)) <= count


IDS = st.integers(0, 2**32 - 2) | st.sampled_from([0, 1, 2, 5, 1000, 65533, 65534, 65535, 2**31, 2**32 - 2])
FEW = st.sampled_from([0, 5, 1000, 65534, 2**32 - 2])
LISTS = st.sets(IDS | FEW, max_size=4).map(lambda ids: ids - {65534}) | st.builds(range, IDS, IDS)


@given(LISTS, LISTS, IDS | FEW, IDS | FEW, st.lists(IDS | FEW, max_size=5))
def test_permits_what_the_readme_says(uids, gids, uid, gid, groups):
    """Listed users are admitted, and members of listed groups, and nobody else.

    An overflow id never counts.
    """
    overflow_uid, overflow_gid = overflow_ids()
    for ids, overflow in ((uids, overflow_uid), (gids, overflow_gid)):
        assume(type(ids) is range or overflow not in ids)  # cannot be listed
    listed = uid in uids and uid != overflow_uid
    for each in (gid, *groups):
        listed = listed or (each in gids and each != overflow_gid)
    assert peercred.AllowList(uids, gids).permits(peercred.Cred(1, uid, gid), groups) is listed
