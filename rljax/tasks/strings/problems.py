"""Problems of the string task: text format, held-out pairs and strings, and sampling distributions.

A prompt lists functions and a string, `f3 f7 stuvx;`. Its solution applies the functions from right to left and writes
every output, `f7 <output>;f3 <output>`, so every step has the form string, function, output. The held-out sets do not
depend on the seed:

- 5 functions are never composed in training.
- The 400 ordered pairs of the other 20 functions are split into 60 for demonstrations (each function 3 times on the
  left and 3 times on the right), 204 for RL and 136 held out.
- One eighth of the strings of 3 to 5 letters is reserved for evaluation; evaluation problems use no other inputs.
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

DEMONSTRATED_PAIRS = 0.05  # share of level-2 problems among the demonstrations
SINGLE_STEPS = 0.06  # share of single steps among the level-1 demonstrations
ANY_LENGTH = 0.3  # share of level-1 demonstrations with 1 to 7 letters, like intermediate strings
LEVEL_1_PROMPTS = 0.25  # share of level-1 problems among the RL prompts


class Pairs(NamedTuple):
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
    """True if the string is reserved for evaluation problems."""
    return len(text) in LENGTHS and zlib.crc32(text.encode()) % 8 == 0


def make_problem(names: Sequence[str], text: str, level: str) -> Problem:
    """The problem, with solution, of applying the functions `names` to `text`.

    >>> make_problem(["f6", "f9"], "stuv", "level 2")
    Problem(prompt='f6 f9 stuv;', answer='vutsw', solution='f9 vuts;f6 vutsw', level='level 2', info={}, messages=())
    """
    prompt = "".join(f"{name} " for name in names) + f"{text};"
    steps = []
    for name in reversed(names):
        text = apply([name], text)
        steps.append(f"{name} {text}")
    return Problem(prompt, text, ";".join(steps), level)


def single_step(before: str, name: str, text: str, level: str) -> Problem:
    """A problem that continues a solution in which function `before` gave `text`: the output of function `name`.

    A problem of one function names it before and after the string, so a model might learn to use the name before it. In
    the later steps of a solution, the name before the string is that of the previous step.

    >>> single_step("f3", "f9", "stuv", "level 1")
    Problem(prompt='f3 stuv;f9 ', answer='vuts', solution='vuts', level='level 1', info={}, messages=())
    """
    answer = apply([name], text)
    return Problem(f"{before} {text};{name} ", answer, answer, level)


def _draw_string(rng: random.Random, lengths: Sequence[int], *, test: bool) -> str:
    """A random string, with a length drawn from `lengths`; a test string if `test`, else a string for training."""
    length = rng.choice(lengths)
    while True:
        text = "".join(rng.choices(LETTERS, k=length))
        if is_test_string(text) == test:
            return text


def demonstrations(seed: int, count: int) -> Iterator[Problem]:
    """Problems of stage 1: single functions and demonstrated pairs."""
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
    """Problems of stage 2: pairs for RL and single functions."""
    rng = random.Random(f"prompts {seed}")
    for _ in range(count):
        level = LEVELS[0] if rng.random() < LEVEL_1_PROMPTS else LEVELS[1]
        yield make_problem(_NAMES[level](rng), _draw_string(rng, LENGTHS, test=False), level)


def held_out(level: str, seed: int, count: int) -> Iterator[Problem]:
    """Problems of an evaluation level, with test strings as inputs."""
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
