"""The table of algorithms in README and in the docs, from the algorithms themselves: `make generate` writes both."""

import inspect
import re
from functools import partial
from pathlib import Path

from rljax import algorithms

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "| `rljax.algorithms` |", "\n\nEach has its paper's defaults"
COMBINED = {"local_gradient": "local", "whitened": "whitened", "without_negatives": "without negatives of"}


def words(function) -> str:
    """A function as one reads it: a chain by arrows, what is bound in parentheses."""
    if isinstance(function, partial):
        bound = ", ".join(f"{name} {_number(value)}" for name, value in function.keywords.items() if value is not None)
        return f"{words(function.func)}({bound})" if bound else words(function.func)
    outer, inner = function.__qualname__.split(".")[0], inspect.getclosurevars(function).nonlocals
    if outer == "chain":
        return " → ".join(map(words, inner["ratios"]))
    if outer in COMBINED:
        return f"{COMBINED[outer]} {words(next(iter(inner.values())))}"
    return function.__name__


def _number(value) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def row(name: str) -> str:
    make = getattr(algorithms, name)
    parameters = inspect.signature(make).parameters.values()
    given = {p.name: "…" for p in parameters if p.default is p.empty}
    algorithm = make(**given)
    called = f"{name}({', '.join(f'{k}={v}' for k, v in given.items())})" if given else name
    paper = re.search(r"\d{4}\.\d{5}", make.__doc__)
    assert paper, f"{name}: its docstring names no paper"
    columns = [f"`{called}`", *map(words, (algorithm.advantage, algorithm.ratio, algorithm.aggregation)), paper[0]]
    return "| " + " | ".join(columns) + " |"


def table() -> str:
    """The table in Markdown, by name."""
    head = f"{BEGIN} advantage A | ratio f | aggregation w | paper |"
    return "\n".join([head, "|---|---|---|---|---|", *map(row, sorted(algorithms.__all__))])


def main() -> None:
    for page in (README, README.parent / "docs/algorithms/index.md"):
        text = page.read_text(encoding="utf-8")
        before, after = text[: text.index(BEGIN)], text[text.index(END) :]
        page.write_text(before + table() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
