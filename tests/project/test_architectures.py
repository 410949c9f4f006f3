"""The C source on other architectures and with musl."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from peers import OPTION_NUMBERS, OPTIONS

ROOT = Path(__file__).parent.parent.parent
pytestmark = [
    pytest.mark.skipif(not (ROOT / "peercred/_libc.c").exists(), reason="needs the source tree, for the C source"),
    pytest.mark.skipif(find_spec("hatchling") is None, reason="needs hatchling, to import build_ffi"),
]

EVERYWHERE = {"SCM_CREDENTIALS": 2, "SCM_SECURITY": 3, "SCM_PIDFD": 4}
COMPILERS = {
    "musl-gcc": "most",
    "i686-linux-gnu-gcc": "most",
    "aarch64-linux-gnu-gcc": "most",
    "arm-linux-gnueabihf-gcc": "most",
    "riscv64-linux-gnu-gcc": "most",
    "s390x-linux-gnu-gcc": "most",
    "powerpc64le-linux-gnu-gcc": "powerpc",
    "mips64el-linux-gnuabi64-gcc": "mips",
    "alpha-linux-gnu-gcc": "mips",
    "hppa-linux-gnu-gcc": "parisc",
    "sparc64-linux-gnu-gcc": "sparc",
}
PREDEFINED = {
    "x86_64": "most",
    "powerpc": "powerpc",
    "mips": "mips",
    "alpha": "mips",
    "hppa": "parisc",
    "sparc": "sparc",
}


@pytest.fixture(scope="session")
def surface():
    """The names that the module declares, and its C source."""
    program = "import build_ffi; print(build_ffi.DECLARATIONS)"
    declarations = subprocess.check_output([sys.executable, "-B", "-c", program], cwd=ROOT, text=True)
    source = (ROOT / "peercred" / "_libc.c").read_text()
    return set(re.findall(r"\bS[A-Z_]+\b", declarations + source)), source


def expected(names, architecture):
    numbers = {**dict(zip(OPTIONS, OPTION_NUMBERS[architecture], strict=True)), **EVERYWHERE}
    found = {name: number for name, number in numbers.items() if name in names}
    assert len(found) >= 9
    return found


def run(compiler, text):
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]  # here, nobody calls the functions
    command = [compiler, "-O2", *warnings, "-x", "c", "-S", "-", "-o", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)


def compiles(compiler, text):
    return shutil.which(compiler) is not None and run(compiler, text).returncode == 0


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compiles_with_the_right_numbers(surface, compiler):
    """The source compiles without a warning, and has the kernel's numbers.

    The compiler checks them, and the layout.
    """
    if not compiles(compiler, "#include <sys/socket.h>\n"):
        pytest.skip(reason="needs a compiler for another architecture or libc, and that libc's headers")
    names, source = surface
    numbers = expected(names, COMPILERS[compiler])
    layout = {"sizeof(struct ucred)": 12, "offsetof(struct ucred, uid)": 4, "offsetof(struct ucred, gid)": 8}
    checks = [f'_Static_assert({name} == {value}, "{name}");' for name, value in {**numbers, **layout}.items()]
    result = run(compiler, "\n".join(["#include <stddef.h>", source, *checks, ""]))
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("macro", PREDEFINED)
def test_numbers_that_old_headers_lack(surface, macro):
    """Without any headers, the source's own numbers are the architecture's."""
    names, source = surface
    numbers = {name: n for name, n in expected(names, PREDEFINED[macro]).items() if f"#ifndef {name}\n" in source}
    assert len(numbers) >= 5
    text = re.sub(r"^#include.*", "", source, flags=re.MULTILINE)
    text += "".join(f"check {name} == {number}\n" for name, number in numbers.items())
    preprocessor = ["cc", "-E", "-P", "-undef", f"-D__{macro}__", "-"]
    result = subprocess.run(preprocessor, input=text, capture_output=True, text=True, check=True, timeout=60)
    said = [
        tuple(int(n, 0) for n in line.split(" == ")) for line in re.findall("^check (.*)", result.stdout, re.MULTILINE)
    ]
    assert said == [(number, number) for number in numbers.values()]
