"""Rewards that serve several tasks, read from a completion's text without its EOS."""


def exact_match(prompt: str, completion: str, answer: str, *, finished: bool = True) -> float:
    """1 if the completion is finished and is the answer, up to white space around either; else 0."""
    return float(finished and completion.strip() == answer.strip())
