"""An AllowList holds plain numbers, whatever it was given."""

from __future__ import annotations

import pytest

from peercred import AllowList, Cred


class Everyone(int):
    """A number that is equal to every other."""

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


@pytest.mark.parametrize("name", ["uids", "gids"])
def test_numbers_of_other_classes(name):
    """A number of another class cannot decide who is let in."""
    allowed = AllowList(**{name: [Everyone(5)]})
    assert [type(number) for number in getattr(allowed, name)] == [int]
    assert not allowed.permits(Cred(1, 0, 0))
    assert allowed.permits(Cred(1, 5, 5))
