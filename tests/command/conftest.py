"""Ways to run the command in the process of the tests, and where it listens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import ENDING, error_line

from peercred.__main__ import main


@pytest.fixture
def in_process(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A function that runs the command in this process.

    The working directory and the signals are restored afterwards.
    """

    def in_process(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["peercred", *arguments])
        directory = os.getcwd()
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        if os.getcwd() != directory:
            os.chdir(directory)
        return subprocess.CompletedProcess(arguments, status, *capfd.readouterr())

    signals = {number: signal.getsignal(number) for number in ENDING}
    capfd.readouterr()
    yield in_process
    for number, handler in signals.items():
        signal.signal(number, handler)


@pytest.fixture
def error_of(in_process: Callable[..., Any]) -> Callable[..., str]:
    """A function that runs the command, which must fail.

    It returns the error message.
    """
    return lambda *arguments: error_line(in_process(*arguments))


@pytest.fixture
def door(place: Path) -> Path:
    """The path where the command listens. Nothing is there yet."""
    return place / "door"
