"""receive(): no growth with the number of messages."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
from peers import needs_pidfd

from peercred import messages

FORMS = {
    "plain": ({}, 0, 0),
    "pidfd": ({"pidfd": True}, 0, 0),
    "uninvited descriptors": ({}, 3, 0),
    "pidfd and descriptors": ({"pidfd": True}, 2, 2),
    "pidfd and too many descriptors": ({"pidfd": True}, 3, 1),
}


# What each message may leave behind, in bytes: less than the smallest block of
# glibc's malloc, which is 32.
AT_MOST = 20


def footprint():
    """Bytes of memory, Python's blocks of memory, and descriptors."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    blocks = sys.getallocatedblocks() if hasattr(sys, "getallocatedblocks") else 0
    return pages * os.sysconf("SC_PAGE_SIZE"), blocks, len(os.listdir("/proc/self/fd"))


@needs_pidfd
@pytest.mark.parametrize("form", FORMS)
def test_no_growth(datagrams, form, effort):
    """20,000 messages leave neither memory nor descriptors behind."""
    receiver, sender = datagrams
    options, attached, max_fds = FORMS[form]
    messages.enable(receiver, **options)

    def run(number):
        for _ in range(number):
            messages.send(sender, b"x", fds=[0] * attached)
            messages.receive(receiver, 100, max_fds=max_fds).close()

    number = 20_000 * effort

    def grows():
        before = footprint()
        run(number)
        memory, blocks, descriptors = (after - earlier for after, earlier in zip(footprint(), before, strict=True))
        assert descriptors == 0
        return blocks >= number // 10 or memory >= AT_MOST * number  # one block for each message would be a leak

    run(5_000)  # fills caches and free lists
    # A leak grows on, and PyPy's heap only at first.
    assert any(not grows() and not grows() for _ in range(5))
