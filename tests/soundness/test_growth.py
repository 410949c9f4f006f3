"""receive(): no growth with the number of messages."""

from __future__ import annotations

import gc

import pytest
from leaks import footprint
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


@needs_pidfd
@pytest.mark.parametrize("form", FORMS)
def test_no_growth(datagrams, form, effort):
    """5,000 messages leave neither memory nor descriptors behind."""
    receiver, sender = datagrams
    options, attached, max_fds = FORMS[form]
    messages.enable(receiver, **options)
    number = 5_000 * effort

    def after_more_messages():
        for _ in range(number):
            messages.send(sender, b"x", fds=[0] * attached)
            messages.receive(receiver, 100, max_fds=max_fds).close()
        gc.collect()
        return footprint()

    def lowest():  # because PyPy's heap goes up and down
        return [min(seen) for seen in zip(*(after_more_messages() for _ in range(3)), strict=True)]

    def grew():
        descriptors, blocks, allocated = (new - old for old, new in zip(*lows[-2:], strict=True))
        assert descriptors == 0
        # One block for each message would be a leak.
        return blocks >= 3 * number // 10 or allocated >= 3 * number * AT_MOST

    after_more_messages()
    lows = [lowest(), lowest()]
    while grew() and len(lows) < 6:  # PyPy's heap grows at first, and a leak each time
        lows.append(lowest())
    assert not grew()
