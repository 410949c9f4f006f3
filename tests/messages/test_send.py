"""messages.send(): what may be claimed, and how a refusal reads."""

from __future__ import annotations

import array
import errno
import os
import socket
import struct

import pytest
from peers import (
    Child,
    become,
    call,
    fdinfo,
    in_user_namespace,
    needs_namespaces,
    needs_pidfd,
    needs_root,
    outcome,
    own,
)
from raw import assert_nothing_arrives

from peercred import Cred, messages


def arrived(sock):
    """The ucred of the next message, by the standard library."""
    data, [(level, kind, payload)], _, _ = sock.recvmsg(100, 100)
    assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
    return data, *struct.unpack("iII", payload)


def test_plain_send_is_stamped(ends):
    """Without cred, the kernel stamps the message."""
    receiver, sender = ends
    messages.enable(receiver)
    assert messages.send(sender, b"hello") == 5
    assert arrived(receiver) == (b"hello", os.getpid(), os.getuid(), os.getgid())


def test_own_credentials(ends):
    """A pid of None is one's own.

    They arrive even if the receiver enables them later.
    """
    receiver, sender = ends
    assert messages.send(sender, b"hello", cred=Cred(None, os.getuid(), os.getgid())) == 5
    messages.enable(receiver)
    assert arrived(receiver) == (b"hello", os.getpid(), os.getuid(), os.getgid())


@pytest.mark.parametrize(
    "data",
    [[b"he", b"llo"], (b"hel", bytearray(b"lo")), memoryview(b"hello"), array.array("B", b"hello"), iter([b"hello"])],
    ids=["list", "tuple", "memoryview", "array", "iterator"],
)
@pytest.mark.parametrize("claim", [True, False])
def test_buffers(pair, data, claim):
    """One buffer of any kind can be sent, or several."""
    receiver, sender = pair
    if not isinstance(data, (list, tuple, memoryview, array.array)):
        data = iter([b"hello"])  # each parameter's object is there once
    assert messages.send(sender, data, cred=own() if claim else None) == 5
    assert receiver.recv(100) == b"hello"


@pytest.mark.parametrize("data", ["", "hello", 5, None, ["hello"]])
def test_not_buffers(pair, data):
    """Text, also an empty one, and other things are no data."""
    with pytest.raises(TypeError):
        messages.send(pair[0], data)


@pytest.mark.parametrize("data", [b"", [], [b"", b""]])
def test_no_data_on_a_stream(pair, data):
    """Credentials without data are an error on a stream.

    Nothing would arrive. Without credentials it is a plain send of nothing.
    """
    receiver, sender = pair
    with pytest.raises(ValueError, match="no data"):
        messages.send(sender, data, cred=own())
    assert messages.send(sender, data) == 0
    assert_nothing_arrives(receiver)


def test_empty_datagram(datagrams):
    """An empty datagram can have credentials."""
    receiver, sender = datagrams
    assert messages.send(sender, b"", cred=own()) == 0
    assert messages.receive(receiver, 100).cred == own()


def test_flags_and_address(place):
    """Flags and address go to sendmsg."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(str(place / "socket"))
        messages.enable(receiver)
        for cred in (None, own()):
            messages.send(sender, b"x", cred=cred, address=str(place / "socket"))
            assert messages.receive(receiver, 100).cred == own()
        with pytest.raises(BlockingIOError):
            while True:
                messages.send(sender, b"x", cred=own(), flags=socket.MSG_DONTWAIT, address=str(place / "socket"))


@needs_root
def test_claims_among_ones_own_ids(ends):
    """A sender may mix its real, effective and saved ids.

    The receiver cannot tell them apart.
    """
    receiver, sender = ends
    messages.enable(receiver)

    def claim():
        become(uid=(1001, 1002, 1003), gid=(2001, 2002, 2003))
        for uid, gid in ((1001, 2003), (1002, 2001), (1003, 2002)):
            messages.send(sender, b"x", cred=Cred(None, uid, gid))

    with Child(claim) as child:
        child.result()
        for uid, gid in ((1001, 2003), (1002, 2001), (1003, 2002)):
            assert messages.receive(receiver, 1).cred == Cred(child.pid, uid, gid)


@needs_root
@pytest.mark.parametrize(
    "claim", [Cred(None, 0, 2001), Cred(None, 1001, 0), Cred(1, 1001, 2001), Cred(2**22, 1001, 2001)]
)
def test_forged_claims_are_refused(ends, claim):
    """Someone else's uid, gid or pid is EPERM, and the error names the claim.

    Nothing arrives.
    """
    receiver, sender = ends
    messages.enable(receiver)

    def forge():
        become(uid=1001, gid=2001)
        with pytest.raises(PermissionError) as caught:
            messages.send(sender, b"x", cred=claim)
        return caught.value.errno, str(caught.value)

    number, text = call(forge)
    assert number == errno.EPERM
    assert f"sending as Cred(pid={claim.pid}, uid={claim.uid}, gid={claim.gid})" in text
    assert_nothing_arrives(receiver)


@needs_pidfd
@needs_namespaces  # it is CAP_SYS_ADMIN that lets a process claim another's pid
def test_root_may_claim_anything(ends):
    """Root may claim any ids, and any process that exists.

    The receiver gets the pidfd of that process.
    """
    receiver, sender = ends
    messages.enable(receiver, pidfd=True)
    with Child(lambda: None) as other:
        other.result()
        messages.send(sender, b"x", cred=Cred(other.pid, 4294967294, 12345))
        with messages.receive(receiver, 100) as message:
            assert message.cred == Cred(other.pid, 4294967294, 12345)
            assert fdinfo(message.pidfd) == other.pid
    with pytest.raises(ProcessLookupError, match=rf"sending as Cred\(pid={other.pid}, "):
        messages.send(sender, b"x", cred=Cred(other.pid, 0, 0))


@needs_namespaces
def test_id_without_a_mapping(ends):
    """An id without a mapping is EINVAL, and the error names the claim."""
    _, sender = ends
    error = in_user_namespace("0 0 1", lambda: outcome(messages.send, sender, b"x"))
    assert error == 1

    def claim():
        with pytest.raises(OSError, match=r"sending as Cred\(.*uid=5, gid=0\)") as caught:
            messages.send(sender, b"x", cred=Cred(None, 5, 0))
        return caught.value.errno

    assert in_user_namespace("0 0 1", claim) == errno.EINVAL


def test_other_errors_are_untouched(pair):
    """An error that has nothing to do with the claim does not name it."""
    receiver, sender = pair
    receiver.close()
    with pytest.raises(BrokenPipeError) as caught:
        messages.send(sender, b"x", cred=own())
    assert "Cred" not in str(caught.value)


@pytest.mark.parametrize("claim", [(1, 0, 0), 1, "root", True])
def test_not_credentials(pair, claim):
    """Only a Cred is taken for a claim."""
    with pytest.raises(TypeError, match=r"^cred must be a peercred\.Cred or None, not "):
        messages.send(pair[0], b"x", cred=claim)


@pytest.mark.parametrize(("data", "flags"), [(memoryview(b"xyz")[::2], 0), (b"x", 2**31), (b"x", 2**64)])
def test_what_sendmsg_cannot_take(ends, data, flags):
    """Data in pieces and flags that C cannot hold are refused, and not sent."""
    receiver, sender = ends
    with pytest.raises(ValueError, match=r"^(data is not contiguous|flags must fit a C int)"):
        messages.send(sender, data, flags=flags)
    assert_nothing_arrives(receiver)
