"""help() on a terminal of 80 columns."""

from __future__ import annotations

import inspect
import pydoc
import re

import pytest
from questions import QUESTIONS

import peercred
from peercred import messages

DOCUMENTED = {
    "peercred": peercred,
    **{name: getattr(peercred, name) for name in peercred.__all__},
    **{f"messages.{name}": getattr(messages, name) for name in messages.__all__},
}


def lines(thing: object) -> list[str]:
    """What help() shows, without the path at its end.

    And without pydoc's note, from 3.13 on, of the module where a method is.
    """
    shown = pydoc.render_doc(thing, renderer=pydoc.plaintext).partition("\nFILE\n")[0].splitlines()
    return [re.sub(r" from peercred\._\w+\.\w+$", "", line) for line in shown]


def words(line: str) -> str:
    return line.strip(" |")


@pytest.mark.parametrize("name", DOCUMENTED)
def test_nothing_wraps(name):
    """No line is too long for 80 columns.

    Except what pydoc writes about any class, and signatures in messages.
    """
    pydocs_own = {words(line) for line in [*lines(OSError), *lines(object)]}
    too_long = {words(line) for line in lines(DOCUMENTED[name]) if len(line) > 80} - pydocs_own
    signature = f"{name.removeprefix('messages.')}(" if name.startswith("messages.") else "__"
    assert [line for line in too_long if not line.startswith(("__", signature))] == []


def test_cred_shows_no_machinery():
    """help(Cred) begins with its fields and lists no helpers of dataclasses."""
    shown = lines(peercred.Cred)
    assert " |  Cred(pid: int | None, uid: int, gid: int) -> None" in shown
    assert not [line for line in shown if "_dataclass_" in line and "__dataclass_" not in line]


PROPERTIES = {
    f"{name}.{attribute}": value
    for name, thing in DOCUMENTED.items()
    if inspect.isclass(thing)
    for attribute, value in vars(thing).items()
    if isinstance(value, property)
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_first_line_of_a_property_has_no_colon(name):
    """Sphinx takes what comes before the colon for the property's type."""
    assert ":" not in PROPERTIES[name].__doc__.splitlines()[0]


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_says_what_the_kernel_needs(question):
    """help() names the version of Linux that has the option."""
    assert f"Linux {question.since} and later." in question.function.__doc__
