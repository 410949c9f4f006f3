"""The rules of the house.

Which module may import which, what is exported, and what importing costs.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from questions import QUESTIONS

import peercred
from peercred import messages
from peercred._libc import lib

PACKAGE = Path(peercred.__file__).parent

# Each module, and those of the package that it may import: every arrow points
# down.
LADDER = {
    "__init__": {"_allow", "_cred", "_descriptor", "_errors", "_read"},
    "__main__": {"_command"},
    "_command": {"_command.connect", "_command.listen", "_command.output"},
    "_command.listen": {"_command.connect", "_command.output", "_command.peer"},
    "_command.connect": {"_command.output", "_command.peer", "messages"},
    "_command.peer": {"__init__", "_command.output"},
    "_command.output": set(),
    "_allow": {"_cred", "_descriptor", "_errors", "_linux", "_unsupported"},
    "_read": {"_cred", "_descriptor", "_linux", "_unsupported"},
    "messages": {"_cred", "_descriptor", "_message", "_linux_messages", "_unsupported"},
    "_linux_messages": {"_cred", "_libc", "_linux", "_message"},
    "_linux": {"_cred", "_errors", "_libc"},
    "_unsupported": {"_errors"},
    "_message": {"_cred"},
    "_errors": {"_cred"},
    "_descriptor": {"_cred"},
    "_cred": set(),
}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(module: str) -> set[str]:
    """The modules of the package that one imports, as in the ladder."""
    path, found = MODULES[module], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {"__init__" for alias in node.names if alias.name.split(".")[0] == "peercred"}
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "peercred"):
            package = path.relative_to(PACKAGE).parts[:-1][: None if node.level < 2 else 1 - node.level]
            start = [*package, *(node.module or "").split(".")] if node.level else node.module.split(".")[1:]
            below = {".".join(filter(None, [*start, alias.name])) for alias in node.names}
            found |= below & MODULES.keys() or {".".join(filter(None, start)) or "__init__"}
    return found


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_one_way(module):
    """Each module imports what the ladder says, no more and no less."""
    assert imports(module) == LADDER[module]


def test_only_the_linux_back_ends_touch_c():
    """Only the back ends import the compiled module."""
    assert {module for module in MODULES if "_libc" in imports(module)} == {"_linux", "_linux_messages"}


def test_imports_have_no_circle():
    """No module imports itself by way of others."""
    left = {module: imports(module) for module in MODULES}
    while left:
        leaves = [name for name, below in left.items() if not below & left.keys()]
        assert leaves, f"a circle among {sorted(left)}"
        for name in leaves:
            del left[name]


def test_exports():
    """What is public is in __all__ and documented.

    Nothing else is without an underscore.
    """
    public = {name for name in vars(peercred) if not name.startswith("_")} - {"messages"}  # once it is imported
    assert public == set(peercred.__all__)
    for name in peercred.__all__:
        assert getattr(peercred, name).__doc__


def test_dir_shows_the_public_names():
    """What a terminal offers after `messages.` and Tab is public."""
    assert dir(messages) == sorted(messages.__all__)


CLASSES = [
    getattr(module, name)
    for module in (peercred, messages)
    for name in module.__all__
    if inspect.isclass(getattr(module, name))
]


@pytest.mark.parametrize("cls", CLASSES)
def test_classes_are_of_the_public_module(cls):
    """Tracebacks and pickles name the module that people import from."""
    assert getattr(sys.modules[cls.__module__], cls.__name__) is cls
    assert cls.__module__ in ("peercred", "peercred.messages")


def public():
    """Everything that a user may call or annotate with, and its methods."""
    for module in (peercred, messages):
        for name in module.__all__:
            if name != "Connection":
                yield getattr(module, name)
    for cls in (peercred.AllowList, peercred.Cred, messages.Message):
        for name, value in vars(cls).items():
            if inspect.isfunction(value) and not name.startswith("_"):
                yield value


@pytest.mark.parametrize("thing", [*public()], ids=str)
def test_annotations_are_real(thing):
    """inspect and typing can evaluate all annotations at run time."""
    typing.get_type_hints(thing)
    if inspect.isroutine(thing):
        parameters = inspect.signature(thing, eval_str=True).parameters
        assert "conn" not in parameters or parameters["conn"].annotation == peercred.Connection


def test_connection_is_real():
    """Connection is an annotation for other people too."""
    assert peercred.Connection in typing.get_type_hints(peercred.read).values()


def test_stub_is_of_the_compiled_module():
    """_libc.pyi promises what is there, with as many parameters."""
    [stub] = (
        node for node in ast.parse((PACKAGE / "_libc.pyi").read_text()).body if getattr(node, "name", "") == "_Lib"
    )
    functions = {node.name: len(node.args.posonlyargs) - 1 for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert functions.pop("__getattr__") == 1  # a constant's name
    assert functions.keys() == {name for name in dir(lib) if not isinstance(getattr(lib, name), int)}
    for name, parameters in functions.items():
        in_c = re.search(rf"\b{name}\((.*)\);", getattr(lib, name).__doc__)[1]
        assert len(in_c.split(",") if in_c else []) == parameters
        if parameters:  # cffi does not look at the arguments of a function that takes none
            with pytest.raises(TypeError):
                getattr(lib, name)(*[0] * (parameters + 1))


def test_nothing_is_made_by_assigning_a_class():
    """No object is made by assigning `__class__`.

    That would stop the world on a free-threaded build. Each is an audit event,
    and none is seen.
    """
    program = """
import socket, sys
import peercred
from peercred import messages
receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
messages.enable(receiver)
sender.send(b"x")
allowed = peercred.AllowList(uids=range(100_000))
events = []
sys.addaudithook(lambda event, args: events.append(event))
allowed.require(receiver)
messages.receive(receiver, 10)
assert events == [], events
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_import_is_light():
    """`import peercred` adds only its own modules, cffi's backend and errno.

    (dataclasses is there before.)
    """
    program = """
import dataclasses, sys
@dataclasses.dataclass(frozen=True, slots=True)
class Any:  # making one imports inspect, from CPython 3.15 on
    field: int
before = set(sys.modules)
import peercred
print(*sorted(set(sys.modules) - before - {"peercred"}))
"""
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    foreign = {name for name in result.stdout.split() if not name.startswith("peercred.")}
    # A debug build of CPython loads encodings.ascii with any compiled module.
    assert foreign <= {"__future__", "_cffi_backend", "errno", "encodings.ascii"}
    assert not {name for name in result.stdout.split() if "message" in name}


def test_every_question_is_everywhere():
    """All public functions are in support/questions.py, which the tests read.

    The package's own help and typed_usage.py show how to call each.
    """
    functions = {name for name in peercred.__all__ if inspect.isfunction(getattr(peercred, name))}
    assert functions == {question.name for question in QUESTIONS}
    for text in (peercred.__doc__, Path(__file__).with_name("typed_usage.py").read_text()):
        assert functions == set(re.findall(r"\bpeercred\.(\w+)\(conn", text)) & functions
