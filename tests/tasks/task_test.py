"""A task's data: what has a default, and what is refused."""

from pathlib import Path

import pytest

from rljax.tasks import JsonlTask, Problem, StringsTask, TaskData, Tokenizer
from rljax.tasks.task import require_task
from rljax.tasks.tokenizer import EOS

TOKENIZER = Tokenizer.train(["ab"], vocab_size=270)
HELD_OUT = {"easy": [Problem("a", "b")], "hard": [Problem("b", "a")]}


def data(**more):
    return TaskData(TOKENIZER, [], [Problem("a", "b")], HELD_OUT, lambda prompt, text, answer: 0.0, **more)


def test_defaults():
    """The first level leads, a reward of 1 is a solution, and the end-of-sequence token ends a completion."""
    found = data()
    assert found.headline == "easy"
    assert found.stop_ids == (EOS,)
    assert [found.solved(reward) for reward in (-1.0, 0.0, 0.99, 1.0, 2.0)] == [False, False, False, True, True]
    assert not found.checks


def test_a_headline_is_a_level():
    assert data(headline="hard").headline == "hard"
    with pytest.raises(ValueError, match=r"headline = 'medium': expected a held-out level, one of \['easy', 'hard'\]"):
        data(headline="medium")


def test_a_completion_ends_with_some_token():
    with pytest.raises(ValueError, match=r"stop_ids = \(\): expected at least one token"):
        data(stop_ids=())


def test_a_task_without_held_out_problems_has_no_headline():
    assert TaskData(TOKENIZER, [], [], {}, lambda prompt, text, answer: 0.0).headline is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x.jsonl", r"task = 'x\.jsonl': expected a task, such as JsonlTask\(path='x\.jsonl'\)"),
        (Path("a/x.jsonl"), r"task = PosixPath\('a/x\.jsonl'\): .* JsonlTask\(path='a/x\.jsonl'\)"),
        (StringsTask, r"task = <class .*StringsTask'>: expected a task, such as StringsTask\(\)"),
        (None, r"task = None: expected a task, such as JsonlTask\(path='problems\.jsonl'\)"),
    ],
)
def test_what_is_not_a_task_is_refused_with_what_to_write(value, message):
    with pytest.raises(ValueError, match=message):
        require_task(value)
    assert require_task(task := JsonlTask("x.jsonl")) is task
