"""Compiles every kernel for every TPU generation on a machine without a TPU; prints a table, and fails on errors.

    python benchmarks/tpu_compile.py [--all] [WORD ...]      only rows that contain all words, such as v5e gradients

A kernel's program must compile, contain a Pallas kernel and keep its temporaries within their bound; the compiler must
reject deliberate overflows. Nothing runs on a TPU: results are checked in Pallas' interpreters (tests/kernels).
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
COMPILERS = 2  # concurrent compilations; one keeps a little more than one core busy


class Outcome(NamedTuple):
    """Result of compiling a case: figures if it compiled; `wrong` is the fault, or None if it met expectations."""

    case: Case
    chip: Chip
    figures: Figures | None
    wrong: str | None
    seconds: float


def attempt(case: Case, chip: Chip, compile: Callable[[Case, Chip], Figures]) -> Outcome:
    start, found, error = time.monotonic(), None, None
    try:
        found = compile(case, chip)
    except Exception as raised:  # go on with the other cases
        error = f"{type(raised).__name__}: {raised}"
    return Outcome(case, chip, found, judge(case, found, error), time.monotonic() - start)


def judge(case: Case, found: Figures | None, error: str | None) -> str | None:
    if case.fails_with and found:
        return f"the program compiled: expected an error that contains {case.fails_with!r}"
    if found is None:
        expected = case.fails_with and re.search(case.fails_with, error or "")
        return None if expected else error
    if case.is_kernel and not found.is_kernel:
        return "the program contains no Pallas kernel: expected one"
    if case.temporaries is not None and found.temporaries > case.temporaries:
        return f"temporaries = {found.temporaries:.1f} MiB: expected at most {case.temporaries:.1f} MiB"
    return None


def compile_case(case: Case, chip: Chip) -> Figures:
    return figures(compile_for(chip, *case.build(devices(chip))))


def row(outcome: Outcome) -> str:
    case, chip, found, wrong, seconds = outcome
    allowed = "" if case.temporaries is None else f"{case.temporaries:.0f}"
    numbers = ["rejected, as expected" if wrong is None else "failed", "", "", ""]
    if found:
        numbers = [f"{found.temporaries:.1f}", f"{found.peak:.1f}", f"{found.vmem:.1f}", f"{found.flops / 1e12:.3f}"]
    cells = (case.program, ", ".join(map(str, case.sizes)), chip.name, numbers[0], allowed, *numbers[1:])
    return f"| {' | '.join(cells)} | {seconds:.1f} |"


def label(case: Case, chip: Chip) -> str:
    return f"{case.program} {', '.join(map(str, case.sizes))} {chip.name}"


def report(todo: Iterable[tuple[Case, Chip]], compile: Callable[[Case, Chip], Figures]) -> int:
    """Prints the table and then the faults; returns the number of faults."""
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    outcomes = []
    with ThreadPoolExecutor(COMPILERS) as pool:
        for outcome in pool.map(lambda item: attempt(item[0], item[1], compile), todo):
            outcomes.append(outcome)
            print(row(outcome), flush=True)
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    for outcome in wrong:
        print(f"\nFAILED: {label(outcome.case, outcome.chip)}: {outcome.wrong[:2000]}")
    print(f"\n{len(outcomes) - len(wrong)} of {len(outcomes)} programs as expected")
    return len(wrong)


def main(arguments: list[str]) -> int:
    if not has_libtpu():
        print("tpu-compile: nothing was compiled, since libtpu is not installed; `make .venv/.tpu` installs it")
        return 0
    words = [word for word in arguments if word != "--all"]
    todo = list(product(cases(everything="--all" in arguments), CHIPS.values()))
    todo = [item for item in todo if all(word in label(*item) for word in words)]
    if not todo:
        print(f"tpu-compile: no row contains {' and '.join(words)}")
        return 1
    for chip in CHIPS.values():  # load libtpu here, since two threads cannot load it at once
        devices(chip)
    return min(report(todo, compile_case), 1)


if __name__ == "__main__":
    with_environment()
    sys.exit(main(sys.argv[1:]))
