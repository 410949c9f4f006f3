"""enable() on kernels that lack an option, or refuse to change one."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from peers import SO_PASSPIDFD, SO_PASSRIGHTS, call, needs_passrights, needs_pidfd
from seccomp import needs_seccomp, option, refuse, refuse_option

from peercred import UnsupportedError, messages

pytestmark = needs_seccomp

OPTIONS = {"creds": socket.SO_PASSCRED, "pidfd": SO_PASSPIDFD, "label": socket.SO_PASSSEC}
NAMES = {"creds": "SO_PASSCRED", "pidfd": "SO_PASSPIDFD", "label": "SO_PASSSEC", "fds": "SO_PASSRIGHTS"}

# What a kernel says of an option that it lacks. From Linux 6.16 on, one without
# CONFIG_SECURITY_NETWORK says EOPNOTSUPP of SO_PASSSEC.
LACKING = [*((name, errno.ENOPROTOOPT) for name in OPTIONS), ("label", errno.EOPNOTSUPP)]


def enabled_where(refuse, receiver, **wanted):
    """What enable() raises in a child, by its type and the options it names.

    And which options are on then, as far as the kernel tells.
    """

    def child():
        refuse()
        try:
            error = messages.enable(receiver, **wanted)
        except OSError as raised:
            error = type(raised), raised.errno, [name for name in NAMES if NAMES[name] in str(raised)]
        on = {}
        for name, number in OPTIONS.items():
            try:
                on[name] = receiver.getsockopt(socket.SOL_SOCKET, number)
            except OSError:
                on[name] = None
        return error, on

    return call(child)


@needs_pidfd
@pytest.mark.parametrize(("name", "says"), LACKING)
def test_lacking_and_wanted(datagrams, name, says):
    """The error names the option that is lacking. The others stay off."""
    receiver, _ = datagrams
    messages.enable(receiver, creds=False)
    wanted = dict.fromkeys(OPTIONS, True)
    error, on = enabled_where(lambda: refuse_option(OPTIONS[name], says), receiver, **wanted)
    assert error == (UnsupportedError, errno.ENOPROTOOPT, [name])
    assert on == {**dict.fromkeys(OPTIONS, 0), name: None}


@needs_pidfd
@pytest.mark.parametrize(("name", "says"), LACKING)
def test_lacking_and_not_wanted(datagrams, name, says):
    """An option that is lacking is off, as it was asked for."""
    receiver, _ = datagrams
    wanted = {**dict.fromkeys(OPTIONS, True), name: False}
    error, on = enabled_where(lambda: refuse_option(OPTIONS[name], says), receiver, **wanted)
    assert error is None
    assert on == {**dict.fromkeys(OPTIONS, 1), name: None}


@needs_pidfd
@pytest.mark.parametrize("name", OPTIONS)
def test_lacking_but_accepted(datagrams, name):
    """gVisor lets everybody turn on what it lacks. That is no success."""
    receiver, _ = datagrams
    messages.enable(receiver, creds=False)

    def lack():
        refuse("setsockopt", 0, option(OPTIONS[name]))
        refuse("getsockopt", errno.ENOPROTOOPT, option(OPTIONS[name]))

    error, on = enabled_where(lack, receiver, **dict.fromkeys(OPTIONS, True))
    assert error == (UnsupportedError, errno.ENOPROTOOPT, [name])
    assert on == {**dict.fromkeys(OPTIONS, 0), name: None}


@needs_pidfd
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", [*OPTIONS, pytest.param("fds", marks=needs_passrights)])
def test_refused(datagrams, name, before):
    """If one option cannot be changed, all stay as they were, on or off.

    The error names the one.
    """
    receiver, _ = datagrams
    number = {**OPTIONS, "fds": SO_PASSRIGHTS}[name]
    messages.enable(receiver, **dict.fromkeys(NAMES, before))
    wanted = dict.fromkeys(NAMES, not before)
    error, on = enabled_where(lambda: refuse("setsockopt", errno.EACCES, option(number)), receiver, **wanted)
    assert error == (PermissionError, errno.EACCES, [name])
    assert on == dict.fromkeys(OPTIONS, before)


@needs_pidfd
def test_options_that_cannot_be_asked(datagrams):
    """If enable() cannot learn how the options are, it changes none."""
    receiver, _ = datagrams
    error, on = enabled_where(
        lambda: refuse("getsockopt", errno.EACCES, option(SO_PASSPIDFD)), receiver, creds=False, label=True
    )
    assert error[:2] == (PermissionError, errno.EACCES)
    assert on == {"creds": 1, "pidfd": None, "label": 0}


@pytest.mark.parametrize("fds", [True, False])
def test_kernel_that_cannot_refuse_descriptors(datagrams, fds):
    """Before Linux 6.16 descriptors always come: fds is never an error."""
    receiver, sender = datagrams

    def child():
        refuse_option(SO_PASSRIGHTS)
        messages.enable(receiver, fds=fds)
        messages.send(sender, b"x", fds=(0,))
        with messages.receive(receiver, 10, max_fds=1) as message:
            return message.cred.uid, len(message.fds)

    assert call(child) == (os.getuid(), 1)


@pytest.mark.parametrize(("name", "says"), [lacking for lacking in LACKING if lacking[0] != "creds"])
def test_lacking_and_receiving(datagrams, name, says):
    """Messages work where nobody asks for what is lacking.

    If no pidfd can come, a message lacks none.
    """
    receiver, sender = datagrams

    def child():
        refuse_option(OPTIONS[name], says)
        messages.enable(receiver)
        messages.send(sender, b"x", fds=(0, 0))
        message = messages.receive(receiver, 10)
        return message.cred.uid, message.pidfd_error

    assert call(child) == (os.getuid(), None)
