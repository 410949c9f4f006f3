"""The rules of the house: which module may import which, what is exported, what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import peercred

PACKAGE = Path(peercred.__file__).parent

# Each module, and those of the package that it may import: every arrow points down.
LADDER = {
    "__init__": {"_allow", "_cred", "_errors", "_read"},
    "__main__": {"__init__"},
    "_allow": {"_cred", "_descriptor", "_read"},
    "messages": {"_cred", "_read"},
    "_read": {"_cred", "_descriptor", "_linux", "_unsupported"},
    "_linux": {"_cred", "_errors", "_libc"},
    "_unsupported": {"_cred", "_errors"},
    "_descriptor": set(),
    "_cred": set(),
    "_errors": set(),
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "peercred"):
            if node.level and node.module:
                found.add(node.module)
            else:
                names = {alias.name for alias in node.names}
                found |= {name if (PACKAGE / f"{name}.py").exists() else "__init__" for name in names}
        elif isinstance(node, ast.Import):
            found |= {"__init__" for alias in node.names if alias.name.split(".")[0] == "peercred"}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_imports_run_one_way(path):
    """Each module imports what the ladder says, no more and no less; only _linux touches the compiled one."""
    assert imports(path) == LADDER[path.stem]


def test_ladder_has_no_circle():
    """Following the arrows ends."""
    left = dict(LADDER)
    while left:
        leaves = [name for name, below in left.items() if not below & left.keys()]
        assert leaves, f"a circle among {sorted(left)}"
        for name in leaves:
            del left[name]


def test_exports():
    """What is public is in __all__, documented, and nothing else is without an underscore."""
    public = {name for name in vars(peercred) if not name.startswith("_")} - {"messages"}  # once it is imported
    assert public == set(peercred.__all__)
    for name in peercred.__all__:
        assert getattr(peercred, name).__doc__


def test_import_is_light():
    """`import peercred` adds to dataclasses its own modules, cffi's backend and errno: no typing, socket or enum."""
    program = (
        "import sys, dataclasses; before = set(sys.modules); import peercred; "
        "print(*sorted(set(sys.modules) - before - {'peercred'}))"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    foreign = {name for name in result.stdout.split() if not name.startswith("peercred.")}
    assert foreign <= {"_cffi_backend", "errno"}
    assert "peercred.messages" not in result.stdout.split()
