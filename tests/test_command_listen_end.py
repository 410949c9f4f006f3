"""`peercred --listen PATH`: how signals and a closed pipe end it."""

from __future__ import annotations

import os
import pty
import signal
import termios

import pytest
from command import (
    ENDING,
    can_connect,
    door_fixture,  # noqa: F401
    ended_by,
    full_pipe,
    in_process_fixture,  # noqa: F401
    listening,
    started,
    terminate,
    wait_until,
    wait_until_asleep,
)
from peers import connect, needs_cpython

from peercred._command.listen import Signals


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("times", [1, 2])
def test_signal_ends_it(door, number, times):
    """A signal ends the command without a message, and its file is removed."""
    with listening(door) as command:
        wait_until_asleep(command)
        for _ in range(times):
            command.send_signal(number)
        assert ended_by(command, number)
        assert command.stderr.read() == ""
    assert not door.exists()


@needs_cpython("PyPy does not tell that a signal is ignored")
def test_signal_that_is_ignored_stays_ignored(door):
    """Under nohup, the end of the terminal does not end the command."""
    with listening(door, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as command:
        command.send_signal(signal.SIGHUP)
        connect(str(door)).close()
        assert command.stdout.readline()


@pytest.fixture
def blocked(door):
    """The command as it waits to write a line, and the pipe's other end."""
    reader, writer = full_pipe()
    with listening(door, stdout=writer) as command, open(reader, "rb") as output:
        os.close(writer)
        wait_until_asleep(command)
        yield command, output


@pytest.mark.parametrize("number", ENDING)
def test_signal_while_the_output_blocks(door, blocked, number):
    """After the first signal, the command still writes its line."""
    command, output = blocked
    command.send_signal(number)
    written = output.read()
    assert ended_by(command, number)
    assert written.lstrip(b"-").count(b"\n") == 1
    assert command.stderr.read() == ""
    assert not door.exists()


@pytest.mark.parametrize("number", ENDING)
def test_second_signal_while_the_output_blocks(door, blocked, number):
    """A second signal ends the command although nobody reads its output."""
    command, _ = blocked
    command.send_signal(number)
    other = ENDING[ENDING.index(number) - 1]  # two of the same number could merge into one
    command.send_signal(other)
    assert command.wait() in (128 + number, 128 + other)  # whichever the kernel delivers last
    assert command.stderr.read() == ""
    assert not door.exists()


def test_second_signal_while_the_terminal_is_stopped(door):
    """A second signal ends the command although Ctrl-S stops the terminal."""
    ours, theirs = pty.openpty()
    termios.tcflow(theirs, termios.TCOOFF)
    with started("--listen", str(door), stdout=theirs) as command:
        wait_until(lambda: can_connect(door))
        wait_until_asleep(command)
        command.send_signal(signal.SIGINT)
        command.send_signal(signal.SIGTERM)
        assert command.wait() in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        assert command.stderr.read() == ""
    os.close(ours)
    os.close(theirs)
    assert not door.exists()


def test_signal_while_an_error_blocks(door):
    """A signal ends the command although nobody reads its error message."""
    reader, writer = full_pipe()
    with open(reader, "rb"), listening(door, stderr=writer) as command:
        os.close(writer)
        command.stdout.close()
        connect(str(door)).close()
        wait_until(lambda: not door.exists())
        wait_until_asleep(command)
        terminate(command)


def test_reader_that_has_gone(door):
    """If nobody reads its output any more, the command ends and says why."""
    with listening(door) as command:
        command.stdout.close()
        connect(str(door)).close()
        assert command.wait() == 1
        assert command.stderr.read() == f"peercred: {door}: cannot write to standard output: Broken pipe\n"
    assert not door.exists()


def test_signals_are_restored(place, in_process):
    """When the command ends, signals do what they do by default.

    No signal is written to a descriptor that is closed by then.
    """
    in_process("--listen", str(place / "missing" / "door"))
    assert signal.set_wakeup_fd(-1) == -1
    assert [signal.getsignal(number) for number in ENDING] == [signal.SIG_DFL] * len(ENDING)


def test_only_the_second_signal_interrupts():
    """Only the second signal interrupts, and it interrupts only output."""
    signals = Signals()
    with pytest.raises(KeyboardInterrupt), signals.may_interrupt():
        signals(signal.SIGINT, None)
        assert signals.received == signal.SIGINT
        try:
            signals(signal.SIGTERM, None)
        finally:
            signals(signal.SIGHUP, None)
    signals(signal.SIGINT, None)
    outside = Signals()
    outside(signal.SIGTERM, None)
    outside(signal.SIGTERM, None)
    assert outside.received == signal.SIGTERM
