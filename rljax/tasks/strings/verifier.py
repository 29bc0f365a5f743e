"""Reward and check of the string task."""

import re

from rljax.tasks.strings.functions import FUNCTIONS, LETTERS

_NAME = "|".join(sorted(FUNCTIONS, key=len, reverse=True))
_STEP = re.compile(rf"({_NAME}) ([{LETTERS}]+)")


def read_steps(completion: str) -> list[tuple[str, str]] | None:
    """Steps `(function, output)` of a completion `f7 <output>;f3 <output>`; None if it has another format.

    >>> read_steps("f7 stu;f3 uts"), read_steps("f7 stu;"), read_steps("f7 stu;f3 uts ")
    ([('f7', 'stu'), ('f3', 'uts')], None, None)
    """
    matches = [_STEP.fullmatch(step) for step in completion.split(";")]
    return [(m[1], m[2]) for m in matches if m] if all(matches) else None


def last_output(prompt: str, completion: str, answer: str, *, finished: bool = True) -> float:
    """Outcome reward: 1.0 if the last output equals the answer, else 0.0.

    Function names and earlier outputs are not compared. Malformed text and completions that were cut off at their token
    budget, whose last output may be incomplete, also earn 0.0.
    """
    steps = read_steps(completion)
    return float(finished and steps is not None and steps[-1][1] == answer)


def right_chain(prompt: str, completion: str) -> bool:
    """True if the completion names the prompt's functions in the order of application, last function first.

    Outputs are not compared. A wrong chain can give the right answer, which `last_output` accepts.
    """
    steps = read_steps(completion)
    return steps is not None and [name for name, _ in steps] == prompt.split()[-2::-1]
