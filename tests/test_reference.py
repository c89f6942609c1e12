"""The API reference is what the docstrings say now, and no public name lacks a docstring or a type."""

import inspect
from pathlib import Path

from lfpr.reference import STAGES, documentation, members, page, public

ROOT = Path(__file__).parents[1]
FUNCTIONS = {name: value for name, value in public().items() if inspect.isroutine(value)} | {
    f"{name}.{own}": function for name, value in public().items() for own, function in members(value).items()
}
INITS = {
    name: vars(value)["__init__"] for name, value in public().items() if "__init__" in getattr(value, "__dict__", {})
}


def untyped(function):
    """The parameters, and "return", that have no annotation."""
    found = inspect.signature(function)
    named = [(p.name, p.annotation) for p in found.parameters.values() if p.name not in ("self", "cls")]
    return [name for name, annotation in [*named, ("return", found.return_annotation)] if annotation is found.empty]


def test_the_committed_reference_is_up_to_date():
    assert (ROOT / "docs" / "api.md").read_text() == page(), "run `make docs`"


def test_every_public_name_is_there_once_and_the_stages_are_in_order():
    text = page()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(STAGES)
    assert sorted(line[5:-1] for line in text.splitlines() if line.startswith("### ")) == sorted(public())


def test_every_public_name_and_method_has_a_docstring():
    texts = {name: documentation(name, value)[1] for name, value in public().items()}
    texts |= {name: function.__doc__ for name, function in FUNCTIONS.items()}
    # a dataclass without a docstring shows its fields
    assert [name for name, text in texts.items() if not text or text.startswith(name.split(".")[-1] + "(")] == []


def test_every_public_function_is_fully_annotated():
    assert len(FUNCTIONS) > 100 and len(INITS) > 20
    assert {name: untyped(function) for name, function in (FUNCTIONS | INITS).items() if untyped(function)} == {}
