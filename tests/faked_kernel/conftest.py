"""A program that meets a faked kernel."""

from __future__ import annotations

import pytest
from faked import EXPLAIN, PREPARE, SHIM


@pytest.fixture
def run(preloaded):
    """What lines print that have a `receiver` and a `sender`."""

    def run(*lines, **fake):
        program = "\n".join([PREPARE, *(f"    {line}" for line in lines), EXPLAIN])
        return preloaded(SHIM, program, **{f"FAKE_{name}": value for name, value in fake.items()}).strip()

    return run
