"""receive() in C, with random control data, under the sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "peercred/_libc.c").exists(), reason="needs the source tree, for the C source"
)


def test_random_control_data(tmp_path, effort):
    """No byte beyond a buffer is touched. Each descriptor is closed once."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip(reason="needs a C compiler")
    program = tmp_path / "fuzz"
    sanitize = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    files = [Path(__file__).with_name("fuzz_receive.c"), "-o", program]
    command = [compiler, *sanitize, f"-I{ROOT / 'peercred'}", *files]
    built = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in built.stderr:
        pytest.skip(reason="needs the compiler's sanitizers")
    assert built.returncode == 0, built.stderr
    seed = 0 if effort == 1 else int.from_bytes(os.urandom(4))
    run = subprocess.run([program, str(100_000 * effort), str(seed)], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, f"{100_000 * effort} messages\n"), (seed, run.stderr)
