"""README's table of connections, and these tests, name the same."""

from __future__ import annotations

import re
from pathlib import Path

from readme import section

ROWS = [
    line.strip("|").split(" | ")
    for line in section("Where is the connection?").splitlines()
    if line.startswith("| ") and not line.startswith("| you have")
]
TESTS = "".join(
    path.read_text() for path in sorted(Path(__file__).parent.glob("test_*.py")) if path.name != Path(__file__).name
)


def test_every_expression_is_tested():
    """Whatever the README says to pass stands in a test, which runs it."""
    assert ROWS
    for _, what in ROWS:
        for words in re.findall("`([^`]*)`", what):
            assert words in TESTS, f"no test has {words}"
