"""HölderPO's power mean of ratios (2605.12058): token weights, limits, and variance over all trajectories."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Batch, aggregation, policy_loss, ratio
from tests.claims.words import all_words, log_pi, probabilities, scales, slopes, true_gradient

POWERS = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
WORDS = all_words(2, 6)
CLIPS = {"no clip": ratio.token, "clip": partial(ratio.clip, low=0.2, high=0.2)}
MOVES = (0.1, 0.3, 0.6, 1.0)


@jax.jit
def holder_weights(l, p):
    segments = jnp.ones(l.shape, bool)
    return jax.grad(lambda x: jnp.sum(ratio.power_mean(x, jnp.ones_like(x), segments, p=p)[:, 0]))(l)


def test_holders_weights_are_most_even_at_zero():
    with jax.enable_x64(True):
        l = np.random.default_rng(0).normal(size=(20, 12)) * 0.5
        weights = {p: np.asarray(holder_weights(l, p)) for p in POWERS}
    entropy = {p: -np.sum(w * np.log(w), -1) for p, w in weights.items()}
    np.testing.assert_allclose(entropy[0.0], np.log(12), rtol=1e-12)
    for low, high in itertools.pairwise(POWERS):
        assert np.all((entropy[low] < entropy[high]) == (high <= 0))


def test_holders_limits_are_gspo_grpo_and_gmpo():
    rng = np.random.default_rng(0)
    l, sign = rng.normal(size=(8, 12)) * 0.4, np.sign(rng.normal(size=(8, 1)))
    mask = np.arange(12) < rng.integers(2, 13, (8, 1))
    clip = partial(ratio.clip, low=0.2, high=0.2)
    log_clip = partial(ratio.log_clip, log_low=0.2, log_high=0.2)
    mean, power = ratio.sequence_mean, {p: partial(ratio.power_mean, p=p) for p in (0.0, 1.0)}
    pairs = [
        (ratio.chain(power[0.0], clip), ratio.chain(mean, clip)),  # sequence clip: GSPO
        (ratio.chain(clip, power[1.0]), clip),  # token clip: GRPO
        (ratio.chain(log_clip, power[0.0]), ratio.chain(log_clip, mean)),  # GMPO
        (ratio.chain(power[1.0], clip), clip),  # a sequence-level clip differs from GRPO
    ]

    @jax.jit
    def gradients(l):
        weights = aggregation.sequence_mean(jnp.asarray(mask)[None], jnp.asarray(sign[:, 0])[None])[0]
        A = jnp.asarray(np.repeat(sign, 12, 1))
        batch = Batch(mask=jnp.asarray(mask), old_logp=jnp.zeros_like(l), advantages=A, weights=weights)
        return [[jax.grad(policy_loss)(l, batch, f) for f in pair] for pair in pairs]

    with jax.enable_x64(True):
        *limits, other = jax.tree.map(np.asarray, gradients(l))
    for found, limit in limits:
        assert np.abs(limit).max() > 0.01
        np.testing.assert_allclose(found, limit, atol=1e-13)
    assert not np.allclose(*other, atol=1e-3)


@partial(jax.jit, static_argnames="clip")
@partial(jax.vmap, in_axes=(0, 0, 0, None, None))
@partial(jax.vmap, in_axes=(None, None, None, 0, None))
def variance_and_share(old, new, rewards, p, clip):
    """Variance of one trajectory's gradient under `old`, and its mean projected on the true gradient (1: equal)."""
    probability, slope = probabilities(old, WORDS), slopes(new, WORDS)
    mean_reward = probability @ rewards
    A = jnp.repeat((rewards - mean_reward)[:, None], WORDS.mask.shape[1], 1)
    weights = aggregation.sequence_mean(jnp.asarray(WORDS.mask)[None], jnp.sign(A[:, 0])[None])[0] * len(A)
    batch = Batch(mask=jnp.asarray(WORDS.mask), old_logp=log_pi(old, WORDS), advantages=A, weights=weights)
    c = scales(log_pi(new, WORDS), batch, ratio.chain(partial(ratio.power_mean, p=p), CLIPS[clip]))
    g = jnp.einsum("wt,wtd->wd", c, slope)
    mean, true = probability @ g, true_gradient(new, WORDS, rewards) / WORDS.mask.shape[1]
    return probability @ jnp.sum(g**2, -1) - mean @ mean, mean @ true / (true @ true)


def variances(move, clip, powers=POWERS, count=20):
    """Both [problems, powers], for random rewards and random tabular policies that differ by `move`."""
    rng = np.random.default_rng(0)
    old = rng.normal(size=(count, WORDS.states.max() + 1, 2))
    new, rewards = old + move * rng.normal(size=old.shape), rng.normal(size=(count, len(WORDS.mask)))
    with jax.enable_x64(True):
        return map(np.asarray, variance_and_share(old, new, rewards, np.array(powers), clip))


@pytest.mark.parametrize("clip", CLIPS)
def test_holders_variance_is_least_near_zero_to_one_and_rises_on_both_sides(clip):
    for move in (0.3, 1.0):
        variance, _ = variances(move, clip)
        least = np.array(POWERS)[np.argmin(variance, -1)]
        assert np.mean((least >= 0) & (least <= 1)) >= 0.8
        relative = np.median(variance / np.min(variance, -1, keepdims=True), 0)
        here = POWERS.index(0.5)
        assert np.all(np.diff(relative[: here + 1]) < 0)
        assert np.all(np.diff(relative[here:]) > 0)
        assert min(relative[0], relative[-1]) > 1.3
