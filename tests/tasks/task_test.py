"""A task's data: what has a default, and what is refused."""

import dataclasses

import pytest

from rljax.tasks import Problem, TaskData, Tokenizer
from rljax.tasks.tokenizer import BOS, EOS, PAD

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


@pytest.mark.parametrize(
    ("stop_ids", "banned"), [((EOS,), (PAD, BOS)), ((BOS, EOS), (PAD,)), ((7,), (PAD, BOS)), ((PAD, BOS), ())]
)
def test_padding_and_bos_are_banned_unless_they_end_completions(stop_ids, banned):
    assert data(stop_ids=stop_ids).banned_ids == banned


def test_a_special_token_that_a_tokenizer_lacks_is_not_banned():
    class WithoutBos(Tokenizer):
        bos_id = -1

    found = data()
    without = dataclasses.replace(found, tokenizer=WithoutBos(TOKENIZER.model_proto))
    assert without.banned_ids == (PAD,)


def test_a_completion_ends_with_some_token():
    with pytest.raises(ValueError, match=r"stop_ids = \(\): expected at least one token"):
        data(stop_ids=())


def test_a_task_without_held_out_problems_has_no_headline():
    assert TaskData(TOKENIZER, [], [], {}, lambda prompt, text, answer: 0.0).headline is None
