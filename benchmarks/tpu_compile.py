"""Every kernel compiled for every TPU generation, on a machine that has no TPU: a table, and an error where one fails.

    python benchmarks/tpu_compile.py [--all] [WORD ...]      only rows that hold all the words, such as v5e gradients

What is checked: the compiler takes the program, a Pallas kernel is in it, its temporaries are within their bound, and
a deliberate overflow is refused. What it computes is checked elsewhere, by the interpreter (tests/kernels).
"""

import re
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

from tpu_cases import Case, cases
from tpu_chips import CHIPS, Chip, Figures, compile_for, devices, figures, has_libtpu, with_environment

HEAD = ("program", "N, D, V", "chip", "temporaries MiB", "at most", "peak HBM MiB", "VMEM MiB", "TFLOP", "seconds")
COMPILERS = 2  # at a time: the compiler keeps a little more than one core busy


class Outcome(NamedTuple):
    """A compiled case, or the compiler's error; and what is wrong with it, None where nothing is."""

    case: Case
    chip: Chip
    figures: Figures | None
    wrong: str | None
    seconds: float


def attempt(case: Case, chip: Chip, compile: Callable[[Case, Chip], Figures]) -> Outcome:
    """Compiles it; whatever is raised is an outcome too."""
    start, found, error = time.monotonic(), None, None
    try:
        found = compile(case, chip)
    except Exception as raised:  # the other cases have to be heard of
        error = f"{type(raised).__name__}: {raised}"
    return Outcome(case, chip, found, judge(case, found, error), time.monotonic() - start)


def judge(case: Case, found: Figures | None, error: str | None) -> str | None:
    """What is wrong, if anything."""
    if case.fails_with and found:
        return f"compiled, where the compiler should have said {case.fails_with!r}"
    if found is None:
        expected = case.fails_with and re.search(case.fails_with, error or "")
        return None if expected else error
    if case.is_kernel and not found.is_kernel:
        return "no Pallas kernel is in it"
    if case.temporaries is not None and found.temporaries > case.temporaries:
        return f"temporaries of {found.temporaries:.1f} MiB, at most {case.temporaries:.1f} are allowed"
    return None


def compile_case(case: Case, chip: Chip) -> Figures:
    return figures(compile_for(chip, *case.build(devices(chip))))


def row(outcome: Outcome) -> str:
    """A line of the table."""
    case, chip, found, wrong, seconds = outcome
    allowed = "" if case.temporaries is None else f"{case.temporaries:.0f}"
    numbers = ["refused, as it should be" if wrong is None else "failed", "", "", ""]
    if found:
        numbers = [f"{found.temporaries:.1f}", f"{found.peak:.1f}", f"{found.vmem:.1f}", f"{found.flops / 1e12:.3f}"]
    cells = (case.program, ", ".join(map(str, case.sizes)), chip.name, numbers[0], allowed, *numbers[1:])
    return f"| {' | '.join(cells)} | {seconds:.1f} |"


def label(case: Case, chip: Chip) -> str:
    return f"{case.program} {', '.join(map(str, case.sizes))} {chip.name}"


def report(todo: Iterable[tuple[Case, Chip]], compile: Callable[[Case, Chip], Figures]) -> int:
    """Prints the table and then what is wrong; the number of cases that are."""
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    outcomes = []
    with ThreadPoolExecutor(COMPILERS) as pool:
        for outcome in pool.map(lambda item: attempt(item[0], item[1], compile), todo):
            outcomes.append(outcome)
            print(row(outcome), flush=True)
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    for outcome in wrong:
        print(f"\nFAILED: {label(outcome.case, outcome.chip)}: {outcome.wrong[:2000]}")
    print(f"\n{len(outcomes) - len(wrong)} of {len(outcomes)} as they should be")
    return len(wrong)


def main(arguments: list[str]) -> int:
    if not has_libtpu():
        print("tpu-compile: nothing was compiled, libtpu is not installed; `make .venv/.tpu` installs it")
        return 0
    words = [word for word in arguments if word != "--all"]
    todo = list(product(cases(everything="--all" in arguments), CHIPS.values()))
    todo = [item for item in todo if all(word in label(*item) for word in words)]
    if not todo:
        print(f"tpu-compile: no row holds {' and '.join(words)}")
        return 1
    for chip in CHIPS.values():  # here, since two threads that load libtpu at once fail
        devices(chip)
    return min(report(todo, compile_case), 1)


if __name__ == "__main__":
    with_environment()
    sys.exit(main(sys.argv[1:]))
