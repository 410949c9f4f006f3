"""The command line of `peercred`: its options, their limits, and its help."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest

from peercred.__main__ import main


def test_help_and_version(in_process):
    """--help and --version write to standard output."""
    assert "Show who is behind a Unix socket" in in_process("--help").stdout
    assert in_process("--version").stdout == f"peercred {version('peercred')}\n"


def test_console_script():
    """The command is installed as `peercred`."""
    (command,) = entry_points(group="console_scripts", name="peercred")
    assert command.load() is main


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["a", "b"],
        ["a", "--listen", "b"],
        [""],
        ["--listen", ""],
        ["--listen"],
        ["--mode", "600"],
        ["a", "--mode", "600"],
        ["--lis", "a"],
        *(["--listen", "a", "--mode", mode] for mode in ("", "8", "0o600", "-1", "1000", "07777", "rw")),
    ],
    ids=" ".join,
)
def test_wrong_command_line(arguments, tmp_path, in_process, monkeypatch):
    """A wrong command line is a usage error with exit code 2."""
    monkeypatch.chdir(tmp_path)
    result = in_process(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: peercred")
    assert re.search(r"^peercred: .+\n\Z", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was done


@pytest.mark.parametrize("mode", ["0", "777"])
def test_smallest_and_largest_mode(mode, in_process, tmp_path):
    """The smallest and the largest mode are accepted."""
    result = in_process("--mode", mode, "--listen", str(tmp_path / "missing" / "door"))
    # Only the path is wrong.
    assert (result.returncode, result.stderr) == (1, f"peercred: {tmp_path}/missing/door: No such file or directory\n")


def test_usage_error_is_escaped(in_process):
    """A usage error escapes the arguments that it shows."""
    result = in_process("a", "b\x1b[2J")
    assert result.returncode == 2
    assert "\x1b" not in result.stderr
    assert r"b\x1b[2J" in result.stderr


def test_help_fits_a_terminal(in_process, monkeypatch):
    """Help and usage errors fit a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    for text in (in_process("--help").stdout, in_process("--nonsense").stderr):
        assert max(map(len, text.splitlines())) < 80


# Runs the command as on another platform. It has neither Unix sockets nor the
# modules pwd, grp and fcntl there.
ELSEWHERE = """
import locale, os, socket, sys
sys.platform = 'plan9'
sys.modules.update(pwd=None, grp=None, fcntl=None)
del socket.AF_UNIX, locale.nl_langinfo, os.fork
from peercred.__main__ import main
sys.exit(main())
"""


def elsewhere(*arguments):
    return subprocess.run([sys.executable, "-c", ELSEWHERE, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [[], ["a"], ["--listen", "a"], ["--json"]], ids=" ".join)
def test_another_platform(arguments):
    """On a platform other than Linux, the command fails with one line."""
    result = elsewhere(*arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"peercred: .*'plan9'\n", result.stderr)


def test_help_on_another_platform(in_process):
    """--help, --version and usage errors are the same on every platform."""
    for arguments in (["--help"], ["--version"], ["--nonsense"]):
        here, there = in_process(*arguments), elsewhere(*arguments)
        assert (there.returncode or None) == (here.returncode or None)
        assert (there.stdout, there.stderr) == (here.stdout, here.stderr)
