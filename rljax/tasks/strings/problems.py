"""Problems of the string task: their text, which pairs and strings are held out, and the distributions they come from.

A prompt names functions and gives a string, `f3 f7 stuvx;`; its solution applies them from right to left with every
output written out, `f7 <output>;f3 <output>`. So a step always reads "string ; f → output", whatever its position:
that is what lets it be composed. What is held out depends on no seed:

- 5 functions are composed nowhere in training;
- the 400 ordered pairs of the other 20 are 60 demonstrated, 204 for RL and 136 held out, each function being
  demonstrated 3 times on the left and 3 times on the right;
- an eighth of the strings of 3 to 5 letters is no problem's input in training, and every problem's in evaluation.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rljax.tasks.strings.functions import FUNCTIONS, LETTERS, LONGEST, apply
from rljax.tasks.task import Problem

ISOLATED = tuple(FUNCTIONS)[-5:]
COMPOSED = tuple(FUNCTIONS)[:-5]
LENGTHS = (3, 4, 5)
LEVELS = (
    "level 1",
    "level 2 trained pairs",
    "level 2 held-out pairs",
    "level 2 held-out functions",
    "level 3",
    "level 4",
)

DEMONSTRATED_PAIRS = 0.05  # share of level 2 among the demonstrations
SINGLE_STEPS = 0.06  # share, among those of level 1, of a step alone in place of a whole problem
ANY_LENGTH = 0.3  # share of their level-1 inputs that have 1 to 7 letters, as intermediate strings have
LEVEL_1_PROMPTS = 0.25  # share of level 1 among the prompts of RL


class Pairs(NamedTuple):
    """Ordered pairs of functions by what they serve."""

    demonstrated: tuple[tuple[str, str], ...]
    trained: tuple[tuple[str, str], ...]
    held_out: tuple[tuple[str, str], ...]
    held_out_functions: tuple[tuple[str, str], ...]


def _split_pairs() -> Pairs:
    rng = random.Random("pairs of string functions")
    n = len(COMPOSED)
    left, right = (sorted(COMPOSED, key=lambda _: rng.random()) for _ in range(2))
    demonstrated = [(left[i], right[(i + shift) % n]) for shift in range(3) for i in range(n)]
    others = [(a, b) for a in COMPOSED for b in COMPOSED if (a, b) not in demonstrated]
    others.sort(key=lambda _: rng.random())
    isolated = [(a, b) for a in FUNCTIONS for b in FUNCTIONS if a in ISOLATED or b in ISOLATED]
    return Pairs(tuple(demonstrated), tuple(others[:204]), tuple(others[204:]), tuple(isolated))


PAIRS = _split_pairs()


def is_test_string(text: str) -> bool:
    """Whether a string is an input of evaluation problems alone."""
    return len(text) in LENGTHS and zlib.crc32(text.encode()) % 8 == 0


def make_problem(names: Sequence[str], text: str, level: str) -> Problem:
    """The problem of applying the functions to the text, with its solution.

    >>> make_problem(["f6", "f9"], "stuv", "level 2")
    Problem(prompt='f6 f9 stuv;', answer='vutsw', solution='f9 vuts;f6 vutsw', level='level 2', info={})
    """
    prompt = "".join(f"{name} " for name in names) + f"{text};"
    steps = []
    for name in reversed(names):
        text = apply([name], text)
        steps.append(f"{name} {text}")
    return Problem(prompt, text, ";".join(steps), level)


def single_step(before: str, name: str, text: str, level: str) -> Problem:
    """One function as a later step of a solution has it: a string after any name, the step's own name, its output.

    A whole problem of one function has the same name in both places. A model that has seen nothing else may read it in
    the first, where a composition's later step has the name of the step before.

    >>> single_step("f3", "f9", "stuv", "level 1")
    Problem(prompt='f3 stuv;f9 ', answer='vuts', solution='vuts', level='level 1', info={})
    """
    answer = apply([name], text)
    return Problem(f"{before} {text};{name} ", answer, answer, level)


def _draw_string(rng: random.Random, lengths: Sequence[int], *, test: bool) -> str:
    """A random string, its length uniform over `lengths`, of the test strings or of the others."""
    length = rng.choice(lengths)
    while True:
        text = "".join(rng.choices(LETTERS, k=length))
        if is_test_string(text) == test:
            return text


def demonstrations(seed: int, count: int) -> Iterator[Problem]:
    """Problems of stage 1: every function alone, and the demonstrated pairs."""
    rng = random.Random(f"demonstrations {seed}")
    for _ in range(count):
        if rng.random() < DEMONSTRATED_PAIRS:
            yield make_problem(rng.choice(PAIRS.demonstrated), _draw_string(rng, LENGTHS, test=False), "level 2")
        else:
            lengths = range(1, LONGEST + 1) if rng.random() < ANY_LENGTH else LENGTHS
            name, text = rng.choice(tuple(FUNCTIONS)), _draw_string(rng, lengths, test=False)
            if rng.random() < SINGLE_STEPS:
                yield single_step(rng.choice(tuple(FUNCTIONS)), name, text, "level 1")
            else:
                yield make_problem([name], text, "level 1")


def prompts(seed: int, count: int) -> Iterator[Problem]:
    """Problems of stage 2: the pairs for RL, and some level 1."""
    rng = random.Random(f"prompts {seed}")
    for _ in range(count):
        level = LEVELS[0] if rng.random() < LEVEL_1_PROMPTS else LEVELS[1]
        yield make_problem(_NAMES[level](rng), _draw_string(rng, LENGTHS, test=False), level)


def held_out(level: str, seed: int, count: int) -> Iterator[Problem]:
    """Problems of an evaluation level, on test strings."""
    rng = random.Random(f"{level} {seed}")
    for _ in range(count):
        yield make_problem(_NAMES[level](rng), _draw_string(rng, LENGTHS, test=True), level)


_NAMES: dict[str, Callable[[random.Random], Sequence[str]]] = {
    "level 1": lambda rng: [rng.choice(tuple(FUNCTIONS))],
    "level 2 trained pairs": lambda rng: rng.choice(PAIRS.trained),
    "level 2 held-out pairs": lambda rng: rng.choice(PAIRS.held_out),
    "level 2 held-out functions": lambda rng: rng.choice(PAIRS.held_out_functions),
    "level 3": lambda rng: rng.choices(COMPOSED, k=3),
    "level 4": lambda rng: rng.choices(COMPOSED, k=4),
}
