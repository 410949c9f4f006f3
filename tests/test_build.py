"""What the build does where there is no Linux (nothing), and where the headers are old."""

from __future__ import annotations

import os
import re
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


# Of each architecture what the headers of a kernel that has the options say.
NUMBERS = {
    "x86_64": (59, 76, 77, 83, 3, 4),
    "powerpc": (59, 76, 77, 83, 3, 4),
    "mips": (59, 76, 77, 83, 3, 4),
    "alpha": (59, 76, 77, 83, 3, 4),
    "hppa": (0x4034, 0x404A, 0x404B, 0x4051, 3, 4),
    "sparc": (0x3D, 0x55, 0x56, 0x5C, 3, 4),
}


@needs_hatchling
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("architecture", NUMBERS)
def test_numbers_that_old_headers_lack(architecture):
    """Without any headers, the fall-backs are the numbers of the architecture."""
    program = "import build_ffi; print(build_ffi.SOURCE)"
    source = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    fallbacks = re.findall(r"^#ifndef S.*?^#endif\n(?=#ifndef|\n)", source, re.DOTALL | re.MULTILINE)
    assert len(fallbacks) == 6
    text = "".join(fallbacks) + "SO_PEERGROUPS, SO_PASSPIDFD, SO_PEERPIDFD, SO_PASSRIGHTS, SCM_SECURITY, SCM_PIDFD"
    preprocessor = ["cc", "-E", "-P", "-undef", f"-D__{architecture}__", "-"]
    result = subprocess.run(preprocessor, input=text, check=True, capture_output=True, text=True)
    assert tuple(int(number, 0) for number in result.stdout.split(",")) == NUMBERS[architecture]


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
    assert names == {path.name for path in package.rglob("*") if path.suffix in {".py", ".pyi", ".typed"}}
