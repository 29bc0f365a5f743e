import dataclasses
import re
from decimal import Decimal
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.objective import Rollouts
from rljax.tasks import Problem, TaskData, Tokenizer, exact_match
from rljax.tasks.strings.verifier import last_output
from rljax.training.collect import Drawn, decoded, rollouts_of, verify, with_signal_first
from rljax.training.errors import RunError

PROBLEMS = [Problem("1+1=", "2"), Problem("1+2=", "3"), Problem("2+2=", "4")]


@pytest.fixture(scope="module")
def data():
    tokenizer = Tokenizer.train(["1+1=2", "1+2=3", "2+2=4"], vocab_size=300)
    return TaskData(tokenizer, [], PROBLEMS, {}, lambda prompt, text, answer: len(prompt) * (text == answer))


def samples(data, texts, finished, prompt_length=3, budget=6):
    """Samples as `generate` returns them: finished completions end with a stop token, the others fill the budget."""
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
    assert decoded(samples(data, texts, [True, False, True]), 3, data) == texts


def rewards_of(problems, drawn, data, **more):
    return verify(problems, drawn, data, **more).sum(axis=1)


def drawn(data, texts, finished=None):
    finished = [True] * len(texts) if finished is None else finished
    return Drawn(samples(data, texts, finished, budget=20), texts, np.zeros((len(texts), 1)))  # pyright: ignore[reportArgumentType]


def test_a_reward_is_the_tasks_of_a_completion_that_was_cut_too(data):
    rewards = rewards_of(PROBLEMS, drawn(data, ["2", "3", "5"], [True, False, True]), data)
    assert rewards.dtype == np.float32
    assert rewards.tolist() == [4, 4, 0]
    fixed = rewards_of(PROBLEMS, drawn(data, ["2", "3", "5"], [True, False, True]), data, cut_reward=-0.5)
    assert fixed.tolist() == [4, -0.5, 0]


def test_a_reward_is_given_what_it_names(data):
    problems = [Problem("1+1=", "2", info={"weight": 3}), Problem("1+2=", "3")]
    found = []

    def reward(prompt, text, answer, *, finished, length=0, info, scale=10):
        found.append((text, finished, length, info))
        return scale

    bound = partial(reward, length=-1)
    for function, lengths in ((reward, (3, 1)), (bound, (-1, -1))):
        found.clear()
        task = dataclasses.replace(data, reward=function)
        assert rewards_of(problems, drawn(data, ["33", "5"], [True, False]), task).tolist() == [10, 10]
        assert found == [("33", True, lengths[0], {"weight": 3}), ("5", False, lengths[1], {})]


def test_a_cut_completion_is_not_an_exact_match(data):
    for reward, problem, text in (
        (exact_match, PROBLEMS[0], "2"),
        (last_output, Problem("f6 f9 stuv;", "vutsw"), "f9 vuts;f6 vutsw"),
    ):
        task = dataclasses.replace(data, reward=reward)
        assert rewards_of([problem] * 2, drawn(data, [text] * 2, [True, False]), task).tolist() == [1, 0]


class Unsigned:
    """A reward function without a readable signature."""

    __signature__ = "none"

    def __call__(self, prompt, text, answer):
        return 2


@pytest.mark.parametrize(
    ("value", "number"),
    [(True, 1), (np.bool_(True), 1), (np.float16(0.5), 0.5), (np.int8(-3), -3), (np.array([2.0]), 2),
     (jnp.float32(0.25), 0.25), (jnp.bfloat16(0.5), 0.5), (Fraction(1, 4), 0.25), (Decimal("0.5"), 0.5)],
    ids=str,
)  # fmt: skip
def test_a_reward_is_any_number(data, value, number):
    task = dataclasses.replace(data, reward=lambda *_: value)
    assert rewards_of(PROBLEMS[:1], drawn(data, ["2"]), task).tolist() == [number]
    assert rewards_of(PROBLEMS[:1], drawn(data, ["2"]), dataclasses.replace(data, reward=Unsigned())).tolist() == [2]


@pytest.mark.parametrize(
    ("value", "how"),
    [
        (None, "; write `return` with a number on every path"),
        *(
            (value, ", or a tuple of numbers")
            for value in ("1.0", np.array([1.0, 2.0]), [], [1.0, "a"], 1j, np.array("1.0"), np.array([]))
        ),
    ],
    ids=repr,
)
def test_a_reward_that_is_not_a_number_is_named_with_the_remedy(data, value, how):
    task = dataclasses.replace(data, reward=lambda *_: value)
    expected = f"reward('1+1=', '2', '2') = {value!r}: expected a number, such as 1.0 for a correct completion "
    expected += f"and 0.0 for an incorrect one{how}"
    with pytest.raises(RunError, match=f"^{re.escape(expected)}$"):
        rewards_of(PROBLEMS[:1], drawn(data, ["2"]), task)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda *_: float("nan"), r"reward\('1\+1=', '2', '2'\) = nan: expected a finite number"),
        (lambda *_: 1 / 0, r"reward\('1\+1=', '2', '2'\) raised ZeroDivisionError: .*: expected a number for every"),
        (lambda prompt, text, answer, *, tokens: 1.0, "raised TypeError: .* 'tokens'"),
    ],
)
def test_a_reward_that_is_not_finite_or_raises_is_named(data, reward, message):
    with pytest.raises(RunError, match=message):
        rewards_of(PROBLEMS[:1], drawn(data, ["2"]), dataclasses.replace(data, reward=reward))


def test_the_completions_of_a_prompt_are_a_group(data):
    components = np.stack([np.arange(4.0) - 1, np.ones(4)], axis=1)
    sampled = samples(data, ["1", "2", "3", "4"], [True] * 4)
    drawn = Drawn(sampled, [], components)  # pyright: ignore[reportArgumentType]
    rollouts = rollouts_of(drawn, np.array([7, 8]))
    assert rollouts.tokens.shape == (2, 2, 9)
    assert np.asarray(rollouts.rewards).tolist() == [[0, 1], [2, 3]]
    assert np.asarray(rollouts.task).tolist() == [7, 8]
    assert np.asarray(rollouts.components).tolist() == [[[-1, 1], [0, 1]], [[1, 1], [2, 1]]]


def test_a_reward_of_several_numbers_is_their_sum(data):
    def reward(prompt, text, answer):
        return float(text == answer), -0.25 * len(text)

    task = dataclasses.replace(data, reward=reward)
    found = verify(PROBLEMS, drawn(data, ["2", "33", "5"], [True, False, True]), task, cut_reward=-1.0)
    assert found[:, 1].tolist() == [-0.25, 0, -0.25]
    assert found[1].tolist() == [-1, 0]
    uneven = dataclasses.replace(data, reward=lambda prompt, text, answer: (1.0,) * len(text))
    with pytest.raises(RunError, match=r"expected 2 numbers, as for other completions"):
        verify(PROBLEMS, drawn(data, ["2", "33", "5"]), uneven)


def test_groups_with_a_signal_come_first_and_the_others_are_absent():
    mask = np.ones((4, 2, 3), bool)
    numbers = np.arange(4)[:, None, None] + np.zeros((4, 2, 3))
    rollouts = Rollouts(tokens=numbers.astype(np.int32), mask=mask, rewards=numbers[..., 0], old_logp=numbers)
    for groups, kept, present in ((3, [1, 3, 0], [True, True, False]), (1, [1], [True])):
        chosen = jax.device_get(with_signal_first(rollouts, np.array([False, True, False, True]), groups))
        assert chosen.tokens[:, 0, 0].tolist() == chosen.rewards[:, 0].tolist() == kept
        assert chosen.mask.all(axis=(1, 2)).tolist() == chosen.mask.any(axis=(1, 2)).tolist() == present
