"""receive(): neither memory nor descriptors grow with the number of messages."""

from __future__ import annotations

import gc
import os
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
