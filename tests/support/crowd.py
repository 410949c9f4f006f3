"""Many threads that work at the same time, with or without a GIL."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from itertools import count

import pytest
from peers import DEADLINE

THREADS = 32


class Crowd:
    """Threads that start together. If one of them fails, all stop."""

    def __init__(self, deadline):
        self.deadline = deadline
        self.failures, self.threads, self.done, self.start = [], [], threading.Event(), threading.Event()

    def add(self, function):
        def run():
            try:
                assert self.start.wait(self.deadline)
                function(self.done)
            except BaseException as failure:
                self.failures.append(failure)
                self.done.set()

        self.threads.append(threading.Thread(target=run, daemon=True))  # pytest must not wait for one that hangs
        self.threads[-1].start()

    def join(self, threads):
        for thread in threads:
            thread.join(self.deadline)
            assert not thread.is_alive(), "a thread hangs"
        if self.failures:
            raise self.failures[0]


@pytest.fixture
def crowd(effort):
    """A function that runs `workers` and `disturbers` in threads.

    It returns when the workers have, and raises the first exception of any
    thread. Each function gets an event, which is set when it has to stop.
    """

    def run(workers, disturbers=()):
        threads = Crowd(DEADLINE * effort)
        for worker in workers:
            threads.add(worker)
        working = threads.threads[:]
        for disturber in disturbers:
            threads.add(disturber)
        threads.start.set()
        try:
            threads.join(working)
        finally:
            threads.done.set()
            threads.join(threads.threads)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # with a GIL, threads take turns as often as possible
    yield run
    sys.setswitchinterval(interval)


def attempts(least, done, heard_all):
    """Count up to `least`, and further until `heard_all()` is true."""
    for attempt in count():
        if done.is_set() or (attempt >= least and heard_all()):
            return
        yield attempt


def swap_by_python(number, peers, done):
    while not done.is_set():
        for peer in peers:
            os.dup2(peer.conn.fileno(), number)


SWAP = r"""
#include <unistd.h>

void swap(const int *from, int count, int to)
{
    for (int round = 0; round < 10000; round++)
        for (int i = 0; i < count; i++)
            dup2(from[i], to);
}
"""


@pytest.fixture(params=["Python", "C"])
def swap(request):
    """A function that puts one socket after the other behind a descriptor.

    In C it does so without the GIL, and so in the middle of calls too.
    """
    if request.param == "Python":
        return swap_by_python
    library = ctypes.CDLL(request.getfixturevalue("preloadable")(SWAP))

    def swap_by_c(number, peers, done):
        numbers = (ctypes.c_int * len(peers))(*(peer.conn.fileno() for peer in peers))
        while not done.is_set():
            library.swap(numbers, len(peers), number)

    return swap_by_c
