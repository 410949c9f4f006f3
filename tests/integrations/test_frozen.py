"""A frozen program, which carries its own Python and the package."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("PyInstaller")

PROGRAM = """
import socket
import peercred
from peercred import messages

ours, theirs = socket.socketpair()
print(peercred.read(ours))
messages.enable(ours)
theirs.send(b"x")
print(messages.receive(ours, 1).cred)
"""


def test_pyinstaller(tmp_path):
    """PyInstaller finds all that the package needs."""
    (tmp_path / "program.py").write_text(PROGRAM)
    freeze = [sys.executable, "-m", "PyInstaller", "--log-level", "WARN", "program.py"]
    subprocess.run(freeze, cwd=tmp_path, env={**os.environ, "PYINSTALLER_CONFIG_DIR": str(tmp_path)}, check=True)
    with subprocess.Popen(
        tmp_path / "dist" / "program" / "program", env={}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        output, errors = program.communicate()
    expected = f"Cred(pid={program.pid}, uid={os.geteuid()}, gid={os.getegid()})\n"
    assert (output, errors, program.returncode) == (2 * expected, "", 0)
