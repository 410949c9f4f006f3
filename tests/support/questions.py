"""What can be asked about a connection: one table, which all tests read.

A new function is one more line of QUESTIONS, and an option that no other
function asks is one more column of OPTIONS, in peers.py. test_house.py checks
that no public function is missing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pytest
from peers import fdinfo, kernel_has, option_number, outcome, own_effective

import peercred
from peercred import Cred


class Peer(NamedTuple):
    """A process, as /proc or the process itself describes it."""

    cred: Cred
    groups: tuple[int, ...]


def myself() -> Peer:
    """This process, by its effective ids."""
    return Peer(own_effective(), tuple(os.getgroups()))


@dataclass(frozen=True)
class Question:
    """A function of peercred that asks about a connection."""

    name: str
    option: str  # which the kernel is asked for
    since: str  # the version of Linux that this option came with
    describes: Callable[[Any, Peer], bool]  # whether an answer is right about a peer
    opens: bool = False  # whether the answer is a descriptor, which the caller must close

    def __str__(self) -> str:
        return self.name

    @property
    def function(self) -> Callable[[Any], Any]:
        return getattr(peercred, self.name)

    @property
    def number(self) -> int:
        """The option's number on this machine."""
        return option_number(self.option)

    @cached_property
    def supported(self) -> bool:
        """Whether this kernel, or its security module, has the option."""
        return kernel_has(self.number)

    def drop(self, answer: Any) -> None:
        """Close an answer that is a descriptor."""
        if self.opens:
            os.close(answer)

    @contextmanager
    def answered(self, conn: Any) -> Iterator[Any]:
        """The answer, which is dropped afterwards."""
        answer = self.function(conn)
        try:
            yield answer
        finally:
            self.drop(answer)

    def ask(self, conn: Any) -> None:
        """Ask, and drop the answer."""
        self.drop(self.function(conn))

    def assert_about(self, conn: Any, peer: Peer) -> None:
        """The answer is about this peer. Without the option, there is none."""
        if self.supported:
            with self.answered(conn) as answer:
                assert self.describes(answer, peer)
        else:
            assert outcome(self.function, conn) == (peercred.UnsupportedError, errno.ENOPROTOOPT)


def is_label(answer: Any, _: Peer) -> bool:
    """test_read_label.py looks at whose label it is."""
    return type(answer) is bytes and bool(answer)


def is_pidfd(answer: int, peer: Peer) -> bool:
    return not os.get_inheritable(answer) and fdinfo(answer) == peer.cred.pid


def is_proc(answer: int, peer: Peer) -> bool:
    return not os.get_inheritable(answer) and os.path.samestat(os.fstat(answer), os.stat(f"/proc/{peer.cred.pid}"))


OPEN_PIDFD = Question("open_pidfd", "SO_PEERPIDFD", "6.5", is_pidfd, opens=True)
OPEN_PROC = Question("open_proc", "SO_PEERPIDFD", "6.5", is_proc, opens=True)
QUESTIONS = (
    Question("read", "SO_PEERCRED", "2.2", lambda answer, peer: answer == peer.cred),
    Question("read_groups", "SO_PEERGROUPS", "4.13", lambda answer, peer: answer == peer.groups),
    Question("read_label", "SO_PEERSEC", "2.6.2", is_label),
    OPEN_PIDFD,
    OPEN_PROC,
)
OPENING = [question for question in QUESTIONS if question.opens]
FUNCTIONS = [question.function for question in QUESTIONS]


def assert_refused(conn: Any, number: int, words: str) -> None:
    """Each of the FUNCTIONS raises a NoPeerError with this errno.

    Their messages have these words, and are the same.
    """
    said = set()
    for function in FUNCTIONS:
        for each in (conn, conn.fileno()):
            with pytest.raises(peercred.NoPeerError, match=words) as caught:
                function(each)
            assert isinstance(caught.value, OSError)
            assert caught.value.errno == number
            said.add(str(caught.value))
    assert len(said) == 1
