"""receive(): control messages that this kernel never sends."""

from __future__ import annotations

import errno
import socket
import struct

import pytest
from faked import FORMS
from peers import SCM_PIDFD, SCM_SECURITY, needs_pidfd
from raw import creds, part, rights

CREDS = creds(7, 8, 9)
CUT, WHO = int(socket.MSG_CTRUNC), "Cred(pid=7, uid=8, gid=9)"
WHOLE = ["messages.enable(receiver, label=True)", "print(messages.receive(receiver, 10))"]


def test_the_shim_is_asked(run):
    """The counter-test: a well-formed stamp is believed."""
    assert "cred=Cred(pid=7, uid=8, gid=9), label=None" in run(*WHOLE, CONTROL=CREDS.hex())


def test_control_messages_of_other_levels(run):
    """Control messages of another level are ignored.

    Their numbers look like credentials of root, or a descriptor.
    """
    ip = creds(1, 0, 0, level=socket.IPPROTO_IP) + rights(0, level=socket.IPPROTO_IP)
    lines = [
        "message = messages.receive(receiver, 10, max_fds=5)",
        "print(message.cred, message.fds, os.path.exists('/proc/self/fd/0'))",
    ]
    assert run(WHOLE[0], *lines, CONTROL=(CREDS + ip).hex()) == "Cred(pid=7, uid=8, gid=9) () True"


LABELS = {
    **FORMS,
    "long": (b"y" * 4095 + b"\0", b"y" * 4095),
    "empty": (b"", None),
    "a NUL alone": (b"\0", None),
}


@pytest.mark.parametrize("form", LABELS)
def test_labels(run, form):
    """Labels of SELinux and AppArmor come as they are. An empty one is none."""
    payload, label = LABELS[form]
    answer = run(*WHOLE, CONTROL=(CREDS + part(SCM_SECURITY, payload)).hex())
    assert f"cred=Cred(pid=7, uid=8, gid=9), label={label}, flags=0" in answer


def test_label_that_nobody_asked_for(run):
    """A label without its option is ignored: it was turned on meanwhile."""
    control = CREDS + part(SCM_SECURITY, b"label")
    lines = ["messages.enable(receiver)", "print(messages.receive(receiver, 10, max_fds=253))"]
    assert f"cred={WHO}, label=None, flags=0" in run(*lines, CONTROL=control.hex())


def test_label_that_is_cut_off(run):
    """A label that is cut off is an error."""
    answer = run(*WHOLE, CONTROL=(CREDS + part(SCM_SECURITY, b"y" * 5000)).hex())
    assert answer.startswith(f"OSError {errno.EMSGSIZE} ")


@pytest.mark.parametrize("length", [0, 1, 4, 8, 11, 13, 16])
def test_credentials_of_another_length_are_refused(run, length):
    """A stamp of fewer than 12 bytes, or more, is an error."""
    answer = run(*WHOLE, CONTROL=part(socket.SCM_CREDENTIALS, bytes(length)).hex())
    assert answer.startswith(f"OSError {errno.EMSGSIZE} ")


@pytest.mark.parametrize("ids", [(2**32 - 1, 2**32 - 1), (2**32 - 1, 0), (0, 2**32 - 1)])
@pytest.mark.parametrize("pid", [0, 1])
def test_an_id_of_minus_one_is_nobody(run, ids, pid):
    """A uid or gid of -1 is no sender, whatever stands beside it."""
    payload = struct.pack("iII", pid, *ids)
    assert "cred=None" in run(*WHOLE, CONTROL=part(socket.SCM_CREDENTIALS, payload).hex())


@pytest.mark.parametrize("ids", [(8, 9), (0, 0)])
def test_pid_of_nought_with_ids_is_somebody(run, ids):
    """A pid of 0 beside valid ids is a sender in another PID namespace."""
    answer = run(*WHOLE, CONTROL=part(socket.SCM_CREDENTIALS, struct.pack("iII", 0, *ids)).hex())
    assert f"cred=Cred(pid=None, uid={ids[0]}, gid={ids[1]})" in answer


@needs_pidfd
@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EINVAL, f"ProcessLookupError({errno.ESRCH}, 'the sender is gone"),
        (errno.ESRCH, f"ProcessLookupError({errno.ESRCH}, "),
        (errno.EMFILE, f"OSError({errno.EMFILE}, "),
    ],
)
def test_no_pidfd_and_the_reason(run, number, error):
    """A negative number in the place of a pidfd is its errno.

    EINVAL means a reaped sender, from Linux 6.5 to 6.15.
    """
    stamps = CREDS + part(SCM_PIDFD, struct.pack("i", -number))
    answer = run(
        "messages.enable(receiver, pidfd=True)",
        "message = messages.receive(receiver, 10)",
        "print(message.pidfd, repr(message.pidfd_error))",
        CONTROL=stamps.hex(),
    )
    assert answer.startswith(f"None {error}")


# Descriptors 95 to 99 are the program's own, so that the fake ones are open.
DESCRIPTORS = [
    "for number in range(95, 100): os.dup2(0, number)",
    "messages.enable(receiver, label=True)  # room for 4096 bytes",
    "try:",
    "    with messages.receive(receiver, 10, max_fds=2) as message:",
    "        print(message.cred, message.pidfd, message.fds, message.flags, sorted({*range(95, 100)} - opened()))",
    "finally: print(sorted({*range(95, 100)} - opened()))",
]
PIDFDS = [part(SCM_PIDFD, struct.pack("i", number)) for number in range(95, 100)]
# What is printed while the message is open: the last is what is closed already.
# Then: what is closed in the end.
OWNED = {
    "one of each": (CREDS + rights(95, 96) + PIDFDS[2], f"{WHO} 97 (95, 96) 0 []", [95, 96, 97]),
    "descriptors in three parts": (
        CREDS + rights(95) + rights(96, 97) + rights(98),
        f"{WHO} None (95, 96) {CUT} [97, 98]",
        [95, 96, 97, 98],
    ),
    "three pidfds": (CREDS + PIDFDS[0] + PIDFDS[1] + PIDFDS[2], f"{WHO} 95 () {CUT} [96, 97]", [95, 96, 97]),
    "three pidfds in one": (
        CREDS + part(SCM_PIDFD, struct.pack("3i", 95, 96, 97)),
        f"{WHO} 95 () {CUT} [96, 97]",
        [95, 96, 97],
    ),
    "a pidfd first": (PIDFDS[0] + rights(96) + CREDS, f"{WHO} 95 (96,) 0 []", [95, 96]),
    "part of a number": (
        CREDS + part(socket.SCM_RIGHTS, struct.pack("i", 95) + bytes(3)),
        f"{WHO} None (95,) 0 []",
        [95],
    ),
    "a negative number": (CREDS + rights(-1, 95, -24), f"{WHO} None (95,) 0 []", [95]),
    "a refused pidfd": (CREDS + part(SCM_PIDFD, struct.pack("i", -22)) + rights(95), f"{WHO} None (95,) 0 []", [95]),
    "two credentials": (CREDS + CREDS, None, []),
    "two credentials and descriptors": (
        CREDS + rights(95) + creds(1, 0, 0) + rights(96, 97, 98),
        None,
        [95, 96, 97, 98],
    ),
    "credentials too long, and descriptors": (
        part(socket.SCM_CREDENTIALS, bytes(16)) + rights(95) + PIDFDS[2],
        None,
        [95, 97],
    ),
}


@pytest.mark.parametrize("form", OWNED)
def test_each_descriptor_is_closed_once(run, form):
    """The message has what was asked for; the rest is closed at once.

    In the end all is closed, also if receive() fails.
    """
    control, while_open, closed = OWNED[form]
    lines = run(*DESCRIPTORS, CONTROL=control.hex()).splitlines()
    if while_open is None:
        assert lines[0] == str(closed)
        assert lines[1].startswith(f"OSError {errno.EMSGSIZE} ")
    else:
        assert lines == [while_open, str(closed)]


def test_more_strays_than_there_can_be(run):
    """Each is closed, however many come: a message has at most 253."""
    lines = ["os.dup2(0, 999)", WHOLE[0], "messages.receive(receiver, 10).close()", "print(999 in opened())"]
    assert run(*lines, CONTROL=(CREDS + rights(*[9999] * 300, 999)).hex()) == "False"


def test_more_control_data_than_there_is_room_for(run):
    """If the kernel says that it wrote more, nothing beyond is read."""
    control = CREDS + rights(9999, length=10**6)
    assert f"cred={WHO}, label=None, flags={CUT}" in run(*WHOLE, CONTROL=control.hex(), RAW=1, MORE=10**6)


def test_descriptors_that_nothing_can_hold(run):
    """If no descriptor is asked for, those that come all the same are closed.

    There is room for some if another process turns SO_PASSCRED off meanwhile.
    """
    answer = run(
        "for number in range(95, 100): os.dup2(0, number)",
        "messages.enable(receiver)",
        "try: print(messages.receive(receiver, 10))",
        "finally: print(sorted({*range(95, 100)} - opened()))",
        CONTROL=rights(95, 96, 97).hex(),
    ).splitlines()
    assert answer == [f"Message(data=b'x', cred=None, label=None, flags={CUT}, address=None)", "[95, 96, 97]"]


def test_whole_label_beside_lost_descriptors(run):
    """MSG_CTRUNC does not mean that the label was cut off."""
    control = CREDS + part(SCM_SECURITY, b"label\0")
    assert f"cred={WHO}, label=b'label', flags={CUT}" in run(*WHOLE, CONTROL=control.hex(), FLAGS=CUT)


@needs_pidfd
@pytest.mark.parametrize(("pidfd", "expected"), [(True, errno.EMSGSIZE), (False, None)])
def test_no_pidfd(run, pidfd, expected):
    """Only if one was asked for, `pidfd_error` says what MSG_CTRUNC means."""
    lines = [
        f"messages.enable(receiver, pidfd={pidfd})",
        "error = messages.receive(receiver, 10).pidfd_error",
        "print(error and error.errno)",
    ]
    assert run(*lines, CONTROL=CREDS.hex(), FLAGS=CUT) == str(expected)


@needs_pidfd
def test_option_that_is_turned_on_meanwhile(run):
    """Credentials without room arrive in part, which is an error.

    The pidfd beside them is closed.
    """
    answer = run(
        "messages.receive(receiver, 10)",
        "messages.enable(receiver, creds=False, pidfd=True)",
        "sender.send(b'y')",
        "before = os.listdir('/proc/self/fd')",
        "try: messages.receive(receiver, 10)",
        "finally: print(os.listdir('/proc/self/fd') == before)",
        LATE=1,
    )
    assert answer.startswith(f"True\nOSError {errno.EMSGSIZE} the kernel had no room".replace("the", "[Errno 90] the"))


CRED, ONE, ALL = 12, 4, 4 * 253
LEN, SPACE = socket.CMSG_LEN, socket.CMSG_SPACE


@pytest.mark.parametrize(
    "length", [0, 1, LEN(0) - 1, LEN(0) + 1, LEN(CRED) - 1, LEN(CRED) + 1, 2**31, 2**63, 2**64 - 1]
)
def test_lengths_that_lie(run, length):
    """A control message is believed no further than the buffer."""
    if length >= 2 ** (8 * struct.calcsize("N")):
        pytest.skip(reason="needs 64 bits, for this length")
    answer = run(*WHOLE, CONTROL=creds(7, 8, 9, length=length).hex(), RAW=1)
    if length < LEN(0):
        assert answer.startswith("Message(data=b'x', cred=None, ")
    elif length > LEN(CRED) and LEN(CRED) == SPACE(CRED):  # on 32 bits, where nothing follows them in the buffer
        assert answer.startswith(f"Message(data=b'x', cred={WHO}, ")
    else:  # shorter than credentials, or with what follows them
        assert answer.startswith(f"OSError {errno.EMSGSIZE} ")


ROOM = {
    "nothing": ("creds=False", 0, 0),
    "credentials": ("", 0, SPACE(CRED)),
    "descriptors": ("creds=False", 253, LEN(ALL)),
    "credentials and a descriptor": ("", 1, SPACE(CRED) + LEN(ONE)),
    "credentials and descriptors": ("", 253, SPACE(CRED) + LEN(ALL)),
    "a pidfd": ("creds=False, pidfd=True", 0, LEN(ONE)),
    "credentials and a pidfd": ("pidfd=True", 0, SPACE(CRED) + LEN(ONE)),
    "all but a label": ("pidfd=True", 253, SPACE(CRED) + SPACE(ALL) + LEN(ONE)),
    "credentials and a label": ("label=True", 0, SPACE(CRED) + SPACE(4096)),
}


@needs_pidfd
@pytest.mark.parametrize("form", ROOM)
def test_no_more_room_than_needed(run, form):
    """What nobody asked for has no room to come in, as far as possible.

    If it came in, it would have a number for a moment, such as that of a
    standard error that is closed.
    """
    options, max_fds, room = ROOM[form]
    answer = run(
        f"messages.enable(receiver, {options})",
        f"with messages.receive(receiver, 10, max_fds={max_fds}): pass",
        SHOW=1,
    )
    assert int(answer) == room
    assert room < SPACE(CRED) + LEN(ONE) or max_fds or "True" in options  # no descriptor fits beside credentials
