"""The README's text and code, for the tests that run it as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent.parent / "README.md"
if not FILE.exists():
    pytest.skip(reason="needs README.md, beside the tests' directory", allow_module_level=True)
README = FILE.read_text()


def section(heading: str) -> str:
    """The text from a heading to the next one."""
    _, found, rest = README.partition(f"\n## {heading}\n")
    assert found, f"the README has no section {heading!r}"
    return rest.partition("\n## ")[0]


def blocks(language: str) -> list[str]:
    """The contents of all blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def example(words: str) -> str:
    """The one Python example that contains these words."""
    (found,) = [text for text in blocks("python") if words in text]
    return found
