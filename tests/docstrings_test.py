"""Docstrings of the public functions: opening sentence, every parameter, an example and the errors raised."""

import ast
import doctest
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator

import pytest

from rljax._checks import ranges
from tests.public import PUBLIC

FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|cf|vs|[Ee]qs?|[Ss]ec|[Ff]ig)$")


def prose(function: Callable) -> str:
    parts = doctest.DocTestParser().parse(inspect.getdoc(function) or "")
    return "".join(part for part in parts if isinstance(part, str))


def wrong_opening(function: Callable) -> Iterator[str]:
    paragraph = prose(function).strip().split("\n\n")[0]
    if word := re.match(r"(?:What|How|Which|Where)\b", paragraph):
        yield f"opens with {word[0]!r}"
    periods = re.finditer(r"\.(?=\s|$)", paragraph)
    if all(ABBREVIATION.search(paragraph[: period.start()]) for period in periods):
        yield f"the first paragraph has no sentence that ends in a period: {paragraph[:60]!r}"


def missing_parameters(function: Callable) -> Iterator[str]:
    text = prose(function)
    names = inspect.signature(function).parameters
    missing = [name for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
    if missing:
        yield f"does not mention {', '.join(missing)}"


def missing_example(function: Callable) -> Iterator[str]:
    if not doctest.DocTestParser().get_examples(inspect.getdoc(function) or ""):
        yield "has no doctest"


def errors_of(function: Callable) -> set[str]:
    """ValueError and TypeError, if the function has `ranges` or raises them in its own code."""
    own = inspect.unwrap(function)
    tree = ast.parse(textwrap.dedent(inspect.getsource(own)))
    raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc)
    names = {ast.unparse(error.func if isinstance(error, ast.Call) else error) for error in raised}
    return names & {"ValueError", "TypeError"} | ({"ValueError"} if hasattr(function, "ranges") else set())


def missing_errors(function: Callable) -> Iterator[str]:
    errors, text = errors_of(function), prose(function)
    if errors and not re.search(r"\bRaises\b", text) and not all(error in text for error in errors):
        yield f"does not mention {', '.join(sorted(errors))}"


CHECKS = (wrong_opening, missing_parameters, missing_example, missing_errors)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_docstring_of_every_public_function_is_complete(check):
    faults = [f"{name}: {fault}" for name, function in FUNCTIONS.items() for fault in check(function)]
    assert not faults, "\n".join(faults)


def test_the_functions_of_every_module_are_checked():
    assert {name.rpartition(".")[0].removeprefix("rljax.") for name in FUNCTIONS} == {
        "advantage", "aggregation", "algorithms", "carried", "correction", "distillation", "divergence", "logprobs",
        "metrics", "pallas_kernels", "penalty", "ratio", "regression", "rewards", "rljax", "schedule",
    }  # fmt: skip
    assert {"rljax.policy_loss", "rljax.make_batch", "rljax.advantages_of"} <= set(FUNCTIONS)


def complete(scale: float, *, low: float = 0.1):
    """The product of scale and low. Raises ValueError below 0.

    >>> complete(2.0, low=3.0)
    6.0
    """
    if scale < 0:
        raise ValueError(f"scale = {scale}: expected 0 or more")
    return scale * low


@pytest.mark.parametrize(("before", "after", "fault"), [
    ("The product", "What is the product", "wrong_opening: opens with 'What'"),
    ("low. Raises ValueError below 0.", "low, e.g. 3; raises ValueError", "wrong_opening: the first paragraph has no"),
    (" and low", "", "missing_parameters: does not mention low"),
    (" and low", " and lower", "missing_parameters: does not mention low"),
    ("of scale and low", "and low", "missing_parameters: does not mention scale"),
    (">>> ", "", "missing_example: has no doctest"),
    ("Raises ValueError below 0.", "", "missing_errors: does not mention ValueError"),
])  # fmt: skip
def test_an_incomplete_docstring_is_noticed(before, after, fault, monkeypatch):
    def faults() -> list[str]:
        return [f"{check.__name__}: {fault}" for check in CHECKS for fault in check(complete)]

    assert faults() == []
    monkeypatch.setattr(complete, "__doc__", complete.__doc__.replace(before, after))
    assert any(found.startswith(fault) for found in faults()), faults()


def test_declared_ranges_and_raised_errors_are_found():
    @ranges(low=(0, 1))
    def bounded(low: float = 0.5):
        return low

    def other(x):
        raise TypeError

    found = [errors_of(function) for function in (bounded, other, complete, prose)]
    assert found == [{"ValueError"}, {"TypeError"}, {"ValueError"}, set()]
