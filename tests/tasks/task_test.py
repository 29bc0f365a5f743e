import dataclasses
from pathlib import Path

import pytest

from rljax.tasks import JsonlTask, Problem, StringsTask, TaskData, Tokenizer
from rljax.tasks.task import require_task
from rljax.text.sentencepiece import BOS, EOS, PAD

TOKENIZER = Tokenizer.train(["ab"], vocab_size=270)
HELD_OUT = {"easy": [Problem("a", "b")], "hard": [Problem("b", "a")]}


def data(**more):
    return TaskData(TOKENIZER, [], [Problem("a", "b")], HELD_OUT, lambda prompt, text, answer: 0.0, **more)


def test_defaults():
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
        bos_id = None

    found = data()
    without = dataclasses.replace(found, tokenizer=WithoutBos(TOKENIZER.model_proto))
    assert without.banned_ids == (PAD,)


def test_a_completion_ends_with_some_token():
    class WithoutStop(Tokenizer):
        stop_ids = ()

    assert data(stop_ids=(7, 8)).stop_ids == (7, 8)
    with pytest.raises(ValueError, match=r"stop_ids = \(\): expected at least one token"):
        dataclasses.replace(data(), tokenizer=WithoutStop(TOKENIZER.model_proto), stop_ids=())


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
def test_an_object_that_is_not_a_task_is_refused_with_the_remedy(value, message):
    with pytest.raises(ValueError, match=message):
        require_task(value)
    assert require_task(task := JsonlTask("x.jsonl")) is task


def misspelled(prompt, text, answer, *, finishd):
    return 0.0


def test_a_reward_that_requires_an_unknown_argument_is_refused():
    with pytest.raises(ValueError, match=r"task\.reward = misspelled: requires 'finishd', which is not supplied"):
        JsonlTask("x.jsonl", reward=misspelled)
    JsonlTask("x.jsonl", reward=lambda prompt, text, answer, *, finished, length, info: 0.0)
    JsonlTask("x.jsonl", reward=max)
