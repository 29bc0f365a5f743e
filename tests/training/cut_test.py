"""Completions that are cut off at their token budget: rewarded by the task, by a fixed reward, or masked."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import algorithms
from rljax.tasks import Problem, Task, TaskData, Tokenizer
from rljax.text.sentencepiece import BOS, PAD
from rljax.training import OptimizerConfig, RolloutConfig
from rljax.training.components import make_components
from rljax.training.stages import PolicyStage
from tests.models.bigram import BigramConfig
from tests.training.in_process import on_devices
from tests.training.tiny import config as tiny

pytestmark = [pytest.mark.standard_promotion, pytest.mark.filterwarnings("ignore:Sharding info not provided")]


def distance(prompt, text, answer):
    return -float(len(text))


@dataclasses.dataclass(frozen=True)
class LettersTask(Task):
    """Write any letters after a letter and end with a full stop."""

    reward: object = distance

    def load(self) -> TaskData:
        tokenizer = Tokenizer.train(["ab."], symbols=["a", "b", "."], vocab_size=280)
        stop_ids = tuple(tokenizer.encode("."))
        return TaskData(tokenizer, [], [Problem("a", "")] * 8, {}, self.reward, stop_ids=stop_ids)  # pyright: ignore[reportArgumentType]


def stage_of(*, reward=distance, reward_map=None, **rollout):
    """A stage 2 whose policy continues with "b" with probability 0.8 and otherwise stops; the budget is 4 tokens."""
    sampling = dataclasses.replace(tiny.rollout.sampling, max_new_tokens=4)
    settings = RolloutConfig(prompts=8, completions=8, prompt_length=1, sampling=sampling, **rollout)
    config = dataclasses.replace(
        tiny, task=LettersTask(reward), model=BigramConfig(), likelihood=dataclasses.replace(tiny.likelihood, steps=0),
        algorithm=algorithms.grpo(), rollout=settings, optimizer=OptimizerConfig(learning_rate=0.05, warmup_steps=0),
        evaluation=dataclasses.replace(tiny.evaluation, watch=()), reward_map=reward_map,
    )  # fmt: skip
    with on_devices(1):
        parts = make_components(config)
    stage = PolicyStage(config, parts)
    vocabulary = parts.data.tokenizer.vocab_size
    (b,), (stop,) = map(parts.data.tokenizer.encode, ("b", "."))
    embedding = np.zeros((vocabulary, 16), np.float32)
    unembedding = np.zeros((vocabulary, 16), np.float32)
    embedding[:, 0] = 1
    unembedding[b, 0], unembedding[stop, 0] = 12 + np.log(4), 12
    shardings = jax.tree.map(lambda x: x.sharding, parts.model.abstract_params(parts.mesh))
    stage.begin(jax.device_put({"embedding": embedding, "unembedding": unembedding}, shardings))
    return stage


@functools.cache
def key():
    return jax.random.key(0)


def test_training_learns_to_end_completions_if_longer_ones_earn_less():
    """With a reward of 0 for cut completions, the maximum here, `finished` would instead fall to 0."""
    stage = stage_of()
    rows = [stage.step(n, key())[0] for n in range(16)]
    finished, rewards = ([float(row[name]) for row in rows] for name in ("finished", "reward"))
    assert 0.3 < finished[0] < 0.7
    assert np.mean(finished[-4:]) > 0.8
    assert np.mean(rewards[-4:]) > rewards[0] + 1
    assert all(sample["reward"] == -len(sample["completion"]) for sample in stage.samples)


def test_a_wrong_completion_that_is_cut_is_no_better_than_one_that_ended():
    metrics, rollouts = stage_of(reward=lambda prompt, text, answer: 1.0 if text == "right" else -1.0).step(0, key())
    assert 0.3 < float(metrics["finished"]) < 0.7
    assert (np.asarray(rollouts.rewards) == -1).all()
    assert float(metrics["informative"]) == 0


def test_a_cut_completion_earns_what_its_text_does():
    _, rollouts = stage_of().step(0, key())
    lengths = np.asarray(rollouts.mask).sum(axis=-1)
    rewards = np.asarray(rollouts.rewards)
    assert set(rewards[lengths < 4].tolist()) == {0.0, -1.0, -2.0}
    assert set(rewards[lengths == 4].tolist()) == {-3.0, -4.0}  # ended at the fourth token, or cut off


def test_a_fixed_reward_for_cut_completions():
    stage = stage_of(cut_reward=-10.0)
    metrics, rollouts = stage.step(0, key())
    rewards = np.asarray(rollouts.rewards)
    assert (rewards == -10).mean() == pytest.approx(1 - float(metrics["finished"]), abs=1e-6)
    assert -4 not in rewards
    assert float(metrics["reward"]) == pytest.approx(rewards.mean())


def test_masked_completions_are_absent_from_training_and_present_in_the_metrics():
    plain, masked = (stage_of(mask_cut=mask_cut) for mask_cut in (False, True))
    (shown, whole), (same, kept) = (stage.step(0, key()) for stage in (plain, masked))
    for name in ("reward", "finished", "length"):
        assert float(shown[name]) == float(same[name])
    cut = np.asarray(whole.rewards) == -4
    assert 0 < cut.mean() < 0.7
    np.testing.assert_array_equal(np.asarray(kept.mask), np.asarray(whole.mask) & ~cut[..., None])
    advantages = np.asarray(masked.config.algorithm.advantage(kept.rewards, kept.mask))
    own = np.max(np.where(kept.mask, advantages, -np.inf), axis=-1)
    np.testing.assert_allclose(
        np.sum(np.where(cut, 0, own), axis=-1), 0, atol=1e-5
    )  # the baseline of the completions that remain
    assert np.isneginf(own[cut]).all()
    assert own.max() > 0.5


def test_groups_that_differ_only_by_a_masked_completion_have_no_signal():
    stage = stage_of(reward=lambda prompt, text, answer: float(len(text) == 4), mask_cut=True, train_groups=4)
    metrics, chosen = stage.step(0, key())
    assert float(metrics["reward"]) > 0.05
    assert float(metrics["informative"]) == 0
    assert not np.asarray(chosen.mask).any()


def test_padding_and_bos_are_never_sampled():
    stage = stage_of()
    unembedding = stage.state.params["unembedding"].at[jnp.array([PAD, BOS]), 0].set(15.0)
    stage.state = stage.state._replace(params={**stage.state.params, "unembedding": unembedding})
    _, rollouts = stage.step(0, key())
    assert not np.isin(np.asarray(rollouts.tokens)[np.asarray(rollouts.mask)], (PAD, BOS)).any()


def test_a_reward_map_may_ask_for_lengths_and_finished():
    seen = []

    def shaped(rewards, key, *, finished, lengths):
        seen.append((rewards, finished, lengths))
        return jnp.where(finished, rewards - 0.1 * lengths, -7.0)

    stage = stage_of(reward_map=shaped)
    metrics, rollouts = stage.step(0, key())
    ((rewards, finished, lengths),) = seen
    np.testing.assert_array_equal(lengths, np.asarray(rollouts.mask).sum(axis=-1))
    assert finished.dtype == bool
    assert float(jnp.mean(finished)) == pytest.approx(float(metrics["finished"]))
    np.testing.assert_array_equal(np.asarray(lengths - finished), -np.asarray(rewards))  # number of letters
    np.testing.assert_allclose(rollouts.rewards, np.where(finished, rewards - 0.1 * lengths, -7), rtol=1e-6)


def test_a_reward_map_of_two_arguments_stays_one():
    _, rollouts = stage_of(reward_map=lambda rewards, key: 2 * rewards).step(0, key())
    _, plain = stage_of().step(0, key())
    np.testing.assert_array_equal(rollouts.rewards, 2 * np.asarray(plain.rewards))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cut_reward": float("nan")}, "rollout.cut_reward = nan: expected a finite number, or None"),
        ({"cut_reward": 0.0, "mask_cut": True}, "rollout.mask_cut = True: expected False, since rollout.cut_reward"),
    ],
)
def test_settings_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        RolloutConfig(**change)
