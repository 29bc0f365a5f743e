"""The string task's reward and check, read from a completion's text without its EOS."""

import re

from rljax.tasks.strings.functions import FUNCTIONS, LETTERS

_NAME = "|".join(sorted(FUNCTIONS, key=len, reverse=True))
_STEP = re.compile(rf"({_NAME}) ([{LETTERS}]+)")


def read_steps(completion: str) -> list[tuple[str, str]] | None:
    """The steps `(function, output)` of `f7 <output>;f3 <output>`; None where the text is anything else.

    >>> read_steps("f7 stu;f3 uts"), read_steps("f7 stu;"), read_steps("f7 stu;f3 uts ")
    ([('f7', 'stu'), ('f3', 'uts')], None, None)
    """
    matches = [_STEP.fullmatch(step) for step in completion.split(";")]
    return [(m[1], m[2]) for m in matches if m] if all(matches) else None


def last_output(prompt: str, completion: str, answer: str, *, finished: bool = True) -> float:
    """The string task's reward: 1 if what follows the last function name is the answer, else 0.

    Neither the functions nor the outputs on the way count: this is the outcome alone. Malformed text earns 0, and so
    does a completion that was cut: its last output may only begin like the answer.
    """
    steps = read_steps(completion)
    return float(finished and steps is not None and steps[-1][1] == answer)


def right_chain(prompt: str, completion: str) -> bool:
    """Whether the completion applies the prompt's functions, in the right order (the last named one first).

    The outputs do not count: chain and answer are measured apart, since one step alone often gives the same string.
    """
    steps = read_steps(completion)
    return steps is not None and [name for name, _ in steps] == prompt.split()[-2::-1]
