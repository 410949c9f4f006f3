"""Where there is no Linux nothing is compiled: the wheel is pure, and needs neither a compiler nor cffi."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
needs_hatchling = pytest.mark.skipif(find_spec("hatchling") is None, reason="needs hatchling, of the extra dev")

BUILD = """
import sys
sys.platform = sys.argv[1]
sys.modules.update(dict.fromkeys(["cffi", "_cffi_backend", "setuptools"]))  # importing one is an ImportError
import hatchling.build
print(hatchling.build.build_wheel(sys.argv[2]))
"""


@needs_hatchling
@pytest.mark.parametrize("platform", ["darwin", "freebsd14"])
def test_pure_wheel(tmp_path, platform):
    """Elsewhere the hook leaves all to hatchling: a py3-none-any wheel of the Python files alone."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("pyproject.toml", "build_ffi.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    package = ROOT / "peercred"
    if not package.exists():  # these are the tests of an installed wheel
        import peercred

        package = Path(peercred.__file__).parent
    shutil.copytree(package, checkout / "peercred")  # with a compiled module of Linux lying about
    result = subprocess.run(
        [sys.executable, "-c", BUILD, platform, tmp_path],
        cwd=checkout,
        env={**os.environ, "PATH": "", "CC": "no-compiler"},
        check=True,
        capture_output=True,
        text=True,
    )
    name = result.stdout.splitlines()[-1]
    assert name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(tmp_path / name) as wheel:
        names = {Path(name).name for name in wheel.namelist() if name.startswith("peercred/")}
    assert names == {path.name for path in package.iterdir() if path.suffix in {".py", ".pyi", ".typed"}}
