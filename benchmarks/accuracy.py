"""Prints the tables of docs/accuracy.md: `JAX_PLATFORMS=cpu python -m benchmarks.accuracy`."""

import math

from tests import accuracy_test as functions
from tests.kernels import accuracy_test as kernels


def rounded_up(x: float) -> str:
    if x == 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(x)) - 1)
    return f"{math.ceil(x / unit) * unit:.1e}"


def row(name: str, errors: list[float], gradients: tuple[int, ...]) -> str:
    """A row of a table; a gradient of exactly 0 leaves its cell empty."""
    cells = ["" if i in gradients and x == 0 else rounded_up(x) for i, x in enumerate(errors)]
    return f"| `{name}` | {' | '.join(cells)} |"


if __name__ == "__main__":
    print("| function | float32 | its gradient | bfloat16 |\n|---|---|---|---|")
    for name, errors in functions.measure().items():
        print(row(name, errors, (1,)))
    print("\n| output, form | float32 | its ∂h | its ∂W | bfloat16 | its ∂h | its ∂W | the rounding |")
    print("|---|---|---|---|---|---|---|---|")
    for kernel, form in kernels.ROWS:
        for name, errors in kernels.measure(kernel, form).items():
            print(row(name, errors, (1, 2, 4, 5)))
