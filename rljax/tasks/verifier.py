"""Rewards that serve several tasks, read from a completion's text without its EOS."""


def exact_match(prompt: str, completion: str, answer: str) -> float:
    """1 where the completion is the answer, up to white space around either; else 0."""
    return float(completion.strip() == answer.strip())
