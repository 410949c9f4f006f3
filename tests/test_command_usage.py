"""The command line of `peercred`: its options, their limits, and its help."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest
from command import in_process_fixture  # noqa: F401

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
        ["--timeout", "1"],
        ["--listen", "a", "--timeout", "1"],
        ["--lis", "a"],
        *(["--listen", "a", "--mode", mode] for mode in ("", "8", "0o600", "-1", "1000", "07777", "rw")),
        *(["a", "--timeout", time] for time in ("", "0", "-1", "nan", "inf", "1e99", "soon")),
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


@pytest.mark.parametrize("arguments", [["--timeout", "0.001"], ["--timeout", "1000000"], ["--mode", "777", "--listen"]])
def test_smallest_and_largest_values(arguments, in_process, tmp_path):
    """The smallest and largest values of options are accepted."""
    result = in_process(*arguments, str(tmp_path / "missing" / "door"))
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


def test_another_platform():
    """On a platform other than Linux, the command fails with one line.

    It needs neither Unix sockets nor the modules pwd, grp and fcntl there.
    """
    program = (
        "import socket, sys; sys.platform = 'plan9'; sys.modules.update(pwd=None, grp=None, fcntl=None); "
        "del socket.AF_UNIX; from peercred.__main__ import main; sys.exit(main())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"peercred: .*'plan9'\n", result.stderr)
