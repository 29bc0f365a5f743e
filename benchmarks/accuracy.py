"""The table of docs/accuracy.md: `JAX_PLATFORMS=cpu python -m benchmarks.accuracy`."""

import math

from tests.accuracy_test import measure


def rounded_up(x: float) -> str:
    """Two digits, never less than x."""
    if x == 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(x)) - 1)
    return f"{math.ceil(x / unit) * unit:.1e}"


if __name__ == "__main__":
    print("| function | float32 | its gradient | bfloat16 |\n|---|---|---|---|")
    for name, (value, gradient, coarse) in measure().items():
        slope = rounded_up(gradient) if name.startswith(("ratio", "penalty")) else ""
        print(f"| `{name}` | {rounded_up(value)} | {slope} | {rounded_up(coarse)} |")
