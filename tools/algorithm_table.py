"""Generator of the algorithm table in docs/algorithms/index.md: `make generate`."""

import inspect
import re
from pathlib import Path

from rljax import algorithms
from rljax._expression import shown

PAGE = Path(__file__).parents[1] / "docs/algorithms/index.md"
BEGIN, END = "| `rljax.algorithms` |", "\n\n"
EXAMPLE = 8675309.0  # placeholder for hyper-parameters without a default


def expression(function) -> str:
    """The repr of a function, with long numbers rounded to four digits and … for hyper-parameters without a default."""
    text = shown(function).replace(f"={EXAMPLE}", "=…")
    return re.sub(r"\d+\.\d{5,}", lambda number: f"{float(number[0]):.4g}", text)


def row(name: str) -> str:
    make = getattr(algorithms, name)
    parameters = inspect.signature(make).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty]
    algorithm = make(**dict.fromkeys(required, EXAMPLE))
    called = f"{name}({', '.join(f'{k}=…' for k in required)})" if required else name
    paper = re.search(r"\d{4}\.\d{5}", make.__doc__)
    assert paper, f"{name}: expected a paper (arXiv number) in the docstring"
    functions = (algorithm.advantage, algorithm.ratio, algorithm.aggregation)
    columns = [f"`{called}`", *(f"`{expression(f)}`" for f in functions), paper[0]]
    return "| " + " | ".join(columns) + " |"


def table() -> str:
    head = f"{BEGIN} advantage A | ratio f | aggregation w | paper |"
    return "\n".join([head, "|---|---|---|---|---|", *map(row, sorted(algorithms.__all__))])


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    PAGE.write_text(before + table() + END + rest.split(END, 1)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
