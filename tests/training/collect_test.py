"""From samples to rollouts: texts, rewards, and the groups that are trained on."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rljax.objective import Rollouts
from rljax.tasks import Problem, TaskData, Tokenizer
from rljax.training.collect import completions, rollouts_of, verify, with_signal_first
from rljax.training.errors import RunError

PROBLEMS = [Problem("1+1=", "2"), Problem("1+2=", "3"), Problem("2+2=", "4")]


@pytest.fixture(scope="module")
def data():
    tokenizer = Tokenizer.train(["1+1=2", "1+2=3", "2+2=4"], vocab_size=300)
    return TaskData(tokenizer, [], PROBLEMS, {}, lambda prompt, text, answer: len(prompt) * (text == answer))


def samples(data, texts, finished, prompt_length=3, budget=6):
    """As `generate` gives them: what finished ends with a stop token, what did not fills its budget."""
    T = prompt_length + budget
    tokens, mask = np.zeros((len(texts), T), np.int32), np.zeros((len(texts), T), bool)
    for row, text in enumerate(texts):
        ids = data.tokenizer.encode(text) + [data.stop_ids[0]] * finished[row]
        end = prompt_length + len(ids)
        tokens[row, prompt_length:end], mask[row, prompt_length:end] = ids, True
    logp = np.where(mask, -1.0, 0.0).astype(np.float32)
    return SimpleNamespace(tokens=tokens, mask=mask, segment_ids=mask.astype(np.int32), old_logp=logp,
                           sampled_logp=logp, finished=np.array(finished))  # fmt: skip


def test_texts_are_without_their_stop_token(data):
    texts = ["2", "33", ""]
    assert completions(samples(data, texts, [True, False, True]), 3, data) == texts


def test_a_reward_is_the_tasks_and_0_if_the_completion_did_not_stop(data):
    rewards = verify(PROBLEMS, ["2", "3", "5"], np.array([True, False, True]), data)
    assert rewards.dtype == np.float32
    assert rewards.tolist() == [4, 0, 0]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda *_: float("nan"), r"reward\('1\+1=', '2', '2'\) = nan: expected a finite number"),
        (lambda *_: 1 / 0, r"reward\('1\+1=', '2', '2'\) raised ZeroDivisionError: .* must give a number for any text"),
    ],
)
def test_a_reward_that_is_no_number_is_named(data, reward, message):
    with pytest.raises(RunError, match=message):
        verify(PROBLEMS[:1], ["2"], np.array([True]), TaskData(data.tokenizer, [], PROBLEMS, {}, reward))


def test_the_completions_of_a_prompt_are_a_group(data):
    drawn = SimpleNamespace(samples=samples(data, ["1", "2", "3", "4"], [True] * 4), rewards=np.arange(4.0))
    rollouts = rollouts_of(drawn, np.array([7, 8]))
    assert rollouts.tokens.shape == (2, 2, 9)
    assert np.asarray(rollouts.rewards).tolist() == [[0, 1], [2, 3]]
    assert np.asarray(rollouts.task).tolist() == [7, 8]


def test_groups_with_a_signal_come_first_and_the_others_are_absent():
    mask = np.ones((4, 2, 3), bool)
    numbers = np.arange(4)[:, None, None] + np.zeros((4, 2, 3))
    rollouts = Rollouts(tokens=numbers.astype(np.int32), mask=mask, rewards=numbers[..., 0], old_logp=numbers)
    for groups, kept, present in ((3, [1, 3, 0], [True, True, False]), (1, [1], [True])):
        chosen = jax.device_get(with_signal_first(rollouts, np.array([False, True, False, True]), groups))
        assert chosen.tokens[:, 0, 0].tolist() == chosen.rewards[:, 0].tolist() == kept
        assert chosen.mask.all(axis=(1, 2)).tolist() == chosen.mask.any(axis=(1, 2)).tolist() == present
