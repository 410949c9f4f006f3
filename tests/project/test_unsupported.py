"""Where there is no Linux, the package imports and every call refuses.

Where its build is broken, the import fails.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from peers import run_python
from questions import QUESTIONS

import peercred
from peercred import _allow, _read, _unsupported, messages

ELSEWHERE = """
import sys
sys.platform = "plan9"
import socket
import peercred
from peercred import messages

ours, theirs = socket.socketpair()
try:
    eval(sys.argv[1])
except OSError as error:
    print(type(error) is peercred.UnsupportedError, error.errno, error, sep="|")
print([name for name in sys.modules if "cffi" in name or "_libc" in name])
"""


BY_UID, BY_GROUP = peercred.AllowList(uids={0}), peercred.AllowList(gids={0})
EVERYTHING = {
    **{question.name: question.function for question in QUESTIONS},
    "AllowList": lambda _: peercred.AllowList(),
    "require, by uid": BY_UID.require,
    "require, by group": BY_GROUP.require,
    "enable": messages.enable,
    "receive": lambda sock: messages.receive(sock, 1),
    "send": lambda sock: messages.send(sock, b"x"),
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_nothing_is_missing(pair, monkeypatch, name):
    """Whatever a front asks of `_unsupported` is there, and refuses."""
    for front in (_read, _allow, messages):
        monkeypatch.setattr(front, "kernel", _unsupported)
    with pytest.raises(peercred.UnsupportedError, match=sys.platform) as caught:
        EVERYTHING[name](pair[0])
    assert caught.value.errno == errno.ENOTSUP


CALLS = [
    *(f"peercred.{question}(ours)" for question in QUESTIONS),
    "peercred.AllowList(uids={0})",
    "peercred.AllowList().require(ours)",
    "messages.enable(ours, fds=False)",
    "messages.receive(ours, 1)",
    "messages.send(ours, b'x')",
]


@pytest.mark.parametrize("call", CALLS)
def test_another_platform(call):
    """On another platform the package imports without cffi, and refuses.

    `except OSError` catches that.
    """
    raised, modules = run_python(ELSEWHERE, call).splitlines()
    assert raised.startswith(f"True|{errno.ENOTSUP}|")
    assert "'plan9'" in raised
    assert modules == "[]"


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF broken"])
def test_broken_build_on_linux_is_loud(tmp_path, content):
    """Without its compiled module, or with a broken one, the import fails.

    It is an ImportError and never "unsupported". In a clone that was not built,
    it says how to build it.
    """
    package = Path(peercred.__file__).parent
    compiled = Path(sys.modules["peercred._libc"].__file__)
    shutil.copytree(package, tmp_path / "peercred", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if content is not None:
        (tmp_path / "peercred" / compiled.name).write_bytes(content)
    result = subprocess.run(
        [sys.executable, "-c", "import peercred"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "ImportError" in result.stderr or "ModuleNotFoundError" in result.stderr
    assert "_libc" in result.stderr
    assert ("run `pip install .`" in result.stderr) is (content is None)
