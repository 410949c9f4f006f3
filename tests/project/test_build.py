"""The wheel: its name and contents, and what the build needs.

It is built without Linux, without a compiler, and in a tree that cannot be
written too.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import peercred

ROOT = Path(__file__).parent.parent.parent
ORDINARY_CPYTHON = sys.implementation.name == "cpython" and not sys.abiflags
pytestmark = [
    pytest.mark.skipif(not (ROOT / "build_ffi.py").exists(), reason="needs the source tree, to build a wheel of it"),
    pytest.mark.skipif(
        not all(map(find_spec, ("hatchling", "cffi", "setuptools"))), reason="needs hatchling and setuptools, to build"
    ),
]
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

BUILD = "import build_ffi, sys; print(build_ffi.build_wheel(sys.argv[1]))"


@pytest.fixture
def tree(tmp_path):
    """A copy of the sources, as an sdist holds them."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "build_ffi.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / ".github", tree / ".github")
    package = Path(peercred.__file__).parent  # the installed one, where there is no other
    shutil.copytree(package, tree / "peercred", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "peercred" / "_libc.c", tree / "peercred")  # which is not installed
    return tree


def build(tree, *, program=BUILD, environment=None, preexec_fn=None):
    """Build a wheel of the tree, beside it."""
    return subprocess.run(
        [sys.executable, "-c", program, tree.parent],
        cwd=tree,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})},
        preexec_fn=preexec_fn,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def built(tree, **options):
    """The wheel's name, and the names of the files in its package."""
    result = build(tree, **options)
    assert result.returncode == 0, result.stderr
    name = result.stdout.splitlines()[-1]
    with zipfile.ZipFile(tree.parent / name) as wheel:
        return name, {Path(name).name for name in wheel.namelist() if name.startswith("peercred/")}


def sources(tree):
    return {path.name for path in (tree / "peercred").rglob("*") if path.suffix in {".py", ".pyi", ".typed"}}


def sdist(tree):
    """Build an sdist of the tree, beside it."""
    result = build(tree, program=BUILD.replace("build_wheel", "build_sdist"))
    assert result.returncode == 0, result.stderr
    return tree.parent / result.stdout.splitlines()[-1]


def test_readme_names_what_the_sdist_holds(tree):
    """README has no link that is dead on PyPI, and names files of the sdist."""
    readme = (tree / "README.md").read_text()
    links = re.findall(r"\]\(([^)]*)\)", readme)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    named = re.findall(r"`(\.github/[^`]*)`", readme)
    assert len(named) == 2
    with tarfile.open(sdist(tree)) as archive:
        assert {*named} <= {name.partition("/")[2] for name in archive.getnames()}


@pytest.mark.parametrize("lacking", [None, "Source", "Issues", "Changes", "Security"])
def test_release_without_addresses(tree, lacking):
    """The release workflow refuses what names no address of the project."""
    workflow = (tree / ".github" / "workflows" / "release.yml").read_text()
    _, found, rest = workflow.partition("- name: the addresses are filled in\n        run: |\n")
    assert found
    commands = textwrap.dedent(rest.partition("\n      - ")[0])
    urls = {
        name: f"https://example.org/peercred/{name.lower()}" for name in ("Source", "Issues", "Changes", "Security")
    }
    urls.pop(lacking, None)
    security = tree / ".github" / "SECURITY.md"
    security.write_text(f"Report it at {urls.pop('Security', 'the Security tab')}.\n")
    settings = (tree / "pyproject.toml").read_text()
    lines = "".join(f'"{name}" = "{url}"\n' for name, url in urls.items())
    (tree / "pyproject.toml").write_text(
        re.sub(r"(?<=\[project\.urls\]\n).*?(?=\n\[)", lines, settings, flags=re.DOTALL)
    )
    (tree / "dist").mkdir()
    shutil.copy(sdist(tree), tree / "dist")
    result = subprocess.run(["bash", "-e", "-c", commands], cwd=tree, capture_output=True, text=True, check=False)
    assert result.returncode == (lacking is not None)
    assert result.stdout == (f"no address is filled in: {lacking}\n" if lacking else "")


@needs_compiler
def test_name_and_tag(tree):
    """One wheel serves every ordinary CPython from 3.10.

    Other interpreters each have their own.
    """
    name, contents = built(tree)
    (module,) = contents - sources(tree)
    if ORDINARY_CPYTHON:
        assert re.fullmatch(r"peercred-[\d.]+-cp310-abi3-linux_\w+\.whl", name)
        assert module == "_libc.abi3.so"
    else:
        assert re.fullmatch(r"peercred-[\d.]+-(cp|pp)3\d+-\w+-linux_\w+\.whl", name)
        assert module == f"_libc{sysconfig.get_config_var('EXT_SUFFIX')}"


@needs_compiler
@pytest.mark.skipif(not ORDINARY_CPYTHON, reason="needs an ordinary CPython, for abi3")
def test_name_where_python_knows_another(tree):
    """The name is the same where CPython 3.15 would add the platform to it.

    Older versions do not find that.
    """
    program = f"""
import cffi, pathlib
def compile(*arguments, original=cffi.FFI.compile):
    path = pathlib.Path(original(*arguments))
    return str(path.rename(path.with_name("_libc.abi3-x86_64-linux-gnu.so")))
cffi.FFI.compile = compile
{BUILD}
"""
    name, contents = built(tree, program=program)
    assert "-cp310-abi3-" in name
    assert contents - sources(tree) == {"_libc.abi3.so"}


@needs_compiler
def test_module_lies_in_the_tree(tree):
    """After a build, the module is in the tree, and nothing else is added.

    There Python finds it when it is started in the tree.
    """
    before = set(tree.rglob("*"))
    _, contents = built(tree)
    (module,) = contents - sources(tree)
    assert set(tree.rglob("*")) - before == {tree / "peercred" / module}


def without_privileges():
    """In a child that is root: root, but bound by the permissions of files."""
    if os.geteuid() == 0:
        assert ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) == 0  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


@needs_compiler
def test_tree_that_cannot_be_written(tree):
    """A tree that cannot be written is built all the same, and left alone."""
    for path in (tree, tree / "peercred"):
        path.chmod(0o555)
    before = set(tree.rglob("*"))
    _, contents = built(tree, preexec_fn=without_privileges)
    assert len(contents - sources(tree)) == 1
    assert set(tree.rglob("*")) == before


@needs_compiler
def test_editable_install_of_a_tree_that_cannot_be_written(tree):
    """An editable install of a tree that cannot be written says so."""
    (tree / "peercred").chmod(0o555)
    program = BUILD.replace("build_wheel", "build_editable")
    result = build(tree, program=program, preexec_fn=without_privileges)
    assert result.returncode == 1
    assert re.fullmatch(f"an editable install .*{tree}/peercred.*: Permission denied\n", result.stderr)


@needs_compiler
def test_hooks_cannot_be_switched_off(tree):
    """Hatchling's switch does not make a wheel without the module."""
    name, contents = built(tree, environment={"HATCH_BUILD_NO_HOOKS": "1"})
    assert "none-any" not in name
    assert len(contents - sources(tree)) == 1


def refusal(tree, **options):
    result = build(tree, **options)
    assert result.returncode == 1
    first, *rest = result.stderr.splitlines()
    assert ["apt install gcc" in rest[0], "dnf install gcc" in rest[0], "apk add gcc" in rest[1]] == [True] * 3
    assert len(rest) == 2
    return first


def test_no_compiler(tree):
    """Three lines say that a compiler is missing, and how to install it."""
    assert "a C compiler (no-such-compiler) cannot be found" in refusal(
        tree, environment={"CC": "no-such-compiler -O2"}
    )


@needs_compiler
def test_no_libc_headers(tree):
    """Three lines say that libc's headers are missing."""
    assert "libc's headers (sys/socket.h) cannot be found" in refusal(tree, environment={"CC": "cc -nostdinc"})


@needs_compiler
def test_no_python_headers(tree, tmp_path):
    """Three lines say that Python's headers are missing."""
    program = f"import sysconfig; sysconfig.get_path = lambda name: {str(tmp_path)!r}; {BUILD}"
    assert "Python's headers (Python.h) cannot be found" in refusal(tree, program=program)


@needs_compiler
@pytest.mark.parametrize(
    "variable",
    [
        *("CC", "CC= ", 'CC="', "CC=cc '", 'CFLAGS="', "CFLAGS=\\", "CPPFLAGS='", "CPP='", 'LDFLAGS="', "LDSHARED= "),
        *("CXX='", "LDCXXSHARED='", "AR='", "ARFLAGS='"),
    ],
)
def test_environment_that_cannot_be_understood(tree, variable):
    """A variable of the environment that makes no sense is named."""
    name, _, value = variable.partition("=")
    result = build(tree, environment={name: value})
    assert result.returncode == 1
    assert re.fullmatch(rf"peercred cannot be compiled: {name}=.+\n", result.stderr)


@needs_compiler
@pytest.mark.parametrize("variable", ["CFLAGS", "CPPFLAGS", "LDFLAGS"])
def test_option_that_the_compiler_does_not_know(tree, variable):
    """What the compiler refuses is shown, and no traceback."""
    result = build(tree, environment={variable: "--no-such-option"})
    assert result.returncode == 1
    assert "--no-such-option" in result.stderr
    assert re.match(f"peercred cannot be compiled: {variable}='--no-such-option': .+", result.stderr.splitlines()[-1])
    assert "Traceback" not in result.stderr


@needs_compiler
def test_compiler_that_says_nothing(tree):
    """A compiler that fails without a word is named."""
    result = build(tree, environment={"CC": "false"})
    assert (result.returncode, result.stderr) == (1, "peercred cannot be compiled: CC='false': false ended with 1\n")


def pretending(platform, system, name):
    """A build in which Python says that it runs elsewhere.

    Importing what compiles is an ImportError there.
    """
    return f"""
import platform, sys, sysconfig
sys.platform, platform.system, sysconfig.get_platform = {platform!r}, lambda: {system!r}, lambda: {name!r}
platform.mac_ver = lambda: ("14.5", ("", "", ""), "arm64")
sys.modules.update(dict.fromkeys(["cffi", "_cffi_backend", "setuptools"]))
{BUILD}
"""


@pytest.mark.parametrize(
    ("program", "tag"),
    [
        # A Python of 32 bits takes any Mac for an Intel.
        (
            pretending("darwin", "Darwin", "macosx-11.0-arm64"),
            "macosx_14_0_" + ("arm64" if sys.maxsize > 2**32 else "i386"),
        ),
        (pretending("freebsd14", "FreeBSD", "freebsd-14.1-release-amd64"), "freebsd_14_1_release_amd64"),
    ],
    ids=["macOS", "FreeBSD"],
)
def test_elsewhere(tree, program, tag):
    """Without Linux nothing is compiled, and the wheel says so.

    Its tag is that platform's own, because pip on Linux would prefer
    py3-none-any.
    """
    wheel, contents = built(tree, program=program, environment={"PATH": "", "CC": "no-compiler"})
    assert wheel.endswith(f"-py3-none-{tag}.whl")
    assert contents == sources(tree)
