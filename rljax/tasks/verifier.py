"""Reward functions shared by several tasks."""


def exact_match(prompt: str, completion: str, answer: str, *, finished: bool = True) -> float:
    """1.0 if the completion is finished and equals the answer, else 0.0.

    White space at either end of `completion` and `answer` is ignored. `TaskData.reward` describes the interface.

    >>> exact_match("1+2=", " 3", "3"), exact_match("1+2=", "33", "3")
    (1.0, 0.0)
    """
    return float(finished and completion.strip() == answer.strip())
