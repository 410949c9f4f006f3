"""Control data that a sender makes up: receive() finds what Python finds.

The same bytes go to two sockets. The standard library receives from the one,
with more room than any control data takes, and receive() from the other.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import sys

import pytest
from peers import SCM_PIDFD, SCM_SECURITY, open_descriptors, outcome

pytest.importorskip("hypothesis")

from hypothesis import event, given
from hypothesis import strategies as st
from raw import assert_nothing_arrives, part, send_raw

from peercred import Cred, messages

LEVELS = st.sampled_from([socket.SOL_SOCKET] * 8 + [socket.IPPROTO_IP, socket.IPPROTO_TCP, -1])
OTHER_KINDS = st.sampled_from([0, SCM_SECURITY, SCM_PIDFD, 5, -1])
IDS = st.sampled_from([0, 1, 1001, 2**31, 2**32 - 2, 2**32 - 1]) | st.just(os.getuid())
PIDS = st.sampled_from([os.getpid()] * 4 + [os.getppid(), 1, 0, -1, 2**31 - 1])
UCREDS = st.builds(struct.Struct("iII").pack, PIDS, IDS, IDS)
DESCRIPTORS = st.lists(st.sampled_from([0, 1, 2] * 5 + [-1]), max_size=5) | st.integers(250, 254).map(lambda n: [0] * n)
PAYLOADS = st.one_of(
    st.tuples(st.just(socket.SCM_CREDENTIALS), UCREDS | st.binary(max_size=20)),
    st.tuples(st.just(socket.SCM_RIGHTS), DESCRIPTORS.map(lambda fds: array.array("i", fds).tobytes())),
    st.tuples(st.just(socket.SCM_RIGHTS), st.integers(0, 9).map(bytes)),
    st.tuples(OTHER_KINDS, st.binary(max_size=20)),
)
# Some control messages claim another length than they have. This is added.
LIES = st.sampled_from([0] * 20 + [-1, 1, 4, -12, 100, 2**31, sys.maxsize])
PARTS = st.builds(
    lambda level, payload, lie: part(*payload, level=level, length=max(socket.CMSG_LEN(len(payload[1])) + lie, 0)),
    LEVELS,
    PAYLOADS,
    LIES,
)
CONTROL = st.builds(lambda parts, rest: b"".join(parts) + rest, st.lists(PARTS, max_size=4), st.binary(max_size=3))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
@given(control=CONTROL, max_fds=st.sampled_from([0, 1, 2, 3, 252, 253]), label=st.booleans())
def test_any_control_data(kind, control, max_fds, label):
    """receive() finds the credentials and descriptors that Python finds.

    If the kernel refuses the control data, nothing arrives.
    """
    with contextlib.ExitStack() as stack:
        pairs = [[stack.enter_context(sock) for sock in socket.socketpair(socket.AF_UNIX, kind)] for _ in range(2)]
        for receiver, sender in pairs:
            messages.enable(receiver, label=label)
            sent = outcome(send_raw, sender, control)
        (ours, _), (theirs, _) = pairs
        if sent is not None:
            event(f"refused: {sent[0].__name__} {sent[1]}")
            assert_nothing_arrives(ours)
            return
        data, ancillary, flags, _ = theirs.recvmsg(100, 65536, socket.MSG_CMSG_CLOEXEC)
        assert flags & ~socket.MSG_CMSG_CLOEXEC == 0
        fds = array.array("i")
        for _, which, payload in ancillary:
            if which == socket.SCM_CREDENTIALS:
                ids = struct.unpack("iII", payload)
            elif which == socket.SCM_RIGHTS:
                fds.frombytes(payload)
        for fd in fds:
            stack.callback(os.close, fd)
        event(f"{min(len(fds), 3)} descriptors, {'own' if ids[0] == os.getpid() else 'claimed'} pid")
        before = open_descriptors().keys()
        with messages.receive(ours, 100, max_fds=max_fds) as message:
            assert (message.data, message.cred) == (data, Cred(*ids))
            assert len(message.fds) == min(len(fds), max_fds) == len(open_descriptors().keys() - before)
            assert all(
                os.path.samestat(os.fstat(one), os.fstat(two)) for one, two in zip(message.fds, fds, strict=False)
            )
            assert message.flags == (socket.MSG_CTRUNC if len(fds) > max_fds else 0)
