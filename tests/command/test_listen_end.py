"""`peercred --listen PATH`: how signals and a closed pipe end it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import termios

import pytest
from command import (
    ENDING,
    can_connect,
    ended_by,
    full_pipe,
    listening,
    started,
    terminate,
    wait_until,
    wait_until_asleep,
)
from peers import connect, needs_cpython, open_terminal

from peercred._command.listen import Signals, bound, show_clients

MODULE = sys.modules[Signals.__module__]  # the name is also its function's


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


@pytest.fixture(params=[True, False], ids=["blocking pipe", "non-blocking pipe"])
def blocked(door, request):
    """The command as it waits to write a line."""
    reader, writer = full_pipe()
    os.set_blocking(writer, request.param)
    with listening(door, stdout=writer) as command, open(reader, "rb"):
        os.close(writer)
        wait_until_asleep(command)
        yield command


@pytest.mark.parametrize("number", ENDING)
def test_signal_while_the_output_blocks(door, blocked, number):
    """A signal ends the command although nobody reads its output."""
    blocked.send_signal(number)
    assert ended_by(blocked, number)
    assert blocked.stderr.read() == ""
    assert not door.exists()


def test_signal_while_the_terminal_is_stopped(door):
    """A signal ends the command although Ctrl-S stops the terminal."""
    ours, theirs = open_terminal()
    termios.tcflow(theirs, termios.TCOOFF)
    with started("--listen", str(door), stdout=theirs) as command:
        wait_until(lambda: can_connect(door))
        wait_until_asleep(command)
        terminate(command)
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
    """When the command ends, signals do what they do by default."""
    in_process("--listen", str(place / "missing" / "door"))
    assert [signal.getsignal(number) for number in ENDING] == [signal.SIG_DFL] * len(ENDING)


@pytest.mark.parametrize("prefix", ["", "@"], ids=["a path", "an abstract address"])
def test_signal_while_the_socket_is_made(door, in_process, monkeypatch, prefix):
    """A signal that comes too early to interrupt ends the command later."""

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return bound(*arguments)

    monkeypatch.setattr(MODULE, "bound", signalled)
    assert in_process("--listen", f"{prefix}{door}").returncode == 128 + signal.SIGTERM
    assert not door.exists()


def test_signal_while_the_socket_is_removed(door, error_of, monkeypatch):
    """A signal that comes too late to interrupt changes nothing."""

    @contextlib.contextmanager
    def signalled(*arguments):
        with bound(*arguments):
            try:
                yield
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

    def fail(*_):
        raise OSError(errno.EIO, "failed")

    monkeypatch.setattr(MODULE, "bound", signalled)
    monkeypatch.setattr(MODULE, "show_clients", fail)
    assert error_of("--listen", str(door)) == f"peercred: {door}: failed\n"
    assert not door.exists()


def test_only_one_signal_interrupts():
    """The first signal that may interrupt does, and no other one after it."""
    signals = Signals()
    signals(signal.SIGINT, None)
    signals.may_raise = True
    with pytest.raises(KeyboardInterrupt):
        signals(signal.SIGTERM, None)
    signals(signal.SIGHUP, None)
    assert signals.received == signal.SIGINT


def test_waiting_goes_on():
    """Nobody has come for a second: the command waits on, and sees signals."""
    waits = iter([TimeoutError("timed out"), TimeoutError("timed out"), KeyboardInterrupt])

    class Server(socket.socket):
        def accept(self):
            assert self.gettimeout() == 1
            raise next(waits)

    with Server(socket.AF_UNIX) as server, pytest.raises(KeyboardInterrupt):
        show_clients(server, True, Signals())
    assert list(waits) == []


def test_signal_whose_exception_is_lost():
    """The command ends within a second if nothing was interrupted."""
    signals = Signals()

    class Server(socket.socket):
        def accept(self):
            signals(signal.SIGTERM, None)  # which may not raise here
            raise TimeoutError("timed out")

    with Server(socket.AF_UNIX) as server:
        show_clients(server, True, signals)
