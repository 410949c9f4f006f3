"""isinstance(_, Connection): the methods of an object count, not its class."""

from __future__ import annotations

import os

import pytest

from peercred import Connection


class WithSlots:
    """Its instances have no dictionary, like those of extension modules."""

    __slots__ = ()

    def get_extra_info(self, name):
        return None


class Neither:
    """Its method has another name."""

    def file_no(self):
        return 0


def test_classes_written_in_c():
    """Objects of C types are connections, although they lack __module__."""
    with open(os.devnull, "rb", buffering=0) as file:
        assert isinstance(file, Connection)


def test_other_classes():
    """One of the two methods is enough, and any other method is not."""
    assert isinstance(WithSlots(), Connection)
    assert not isinstance(Neither(), Connection)


@pytest.mark.parametrize("conn", [0, 10**9])
def test_numbers(conn):
    """An int is a connection, whether or not it is open."""
    assert isinstance(conn, Connection)
