"""What Balanced Aggregation (2605.04077) and HölderPO (2605.12058) weigh, and which algorithms they come to."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rljax import Batch, aggregation, policy_loss, ratio


def test_balanced_weights_do_not_know_a_sides_length():
    """Twice as long on the negative side: a token mean gives it twice the weight, BA what its members are."""
    lengths, sign = np.array([[4, 4, 8, 8], [4, 4, 4, 8]]), np.array([[1, 1, -1, -1], [1, 1, 1, -1]])
    mask = np.arange(8) < lengths[..., None]
    w = {f.__name__: np.asarray(f(mask, sign)).sum(-1) for f in (aggregation.token_mean, aggregation.balanced)}
    np.testing.assert_allclose(w["token_mean"][0, 2:].sum() / w["token_mean"][0, :2].sum(), 2)
    np.testing.assert_allclose(w["balanced"][0, 2:].sum() / w["balanced"][0, :2].sum(), 1)
    np.testing.assert_allclose(w["balanced"][1, 3:].sum() / w["balanced"][1, :3].sum(), 1 / 3, rtol=1e-6)


def test_where_balanced_is_each_of_the_others():
    def same(lengths, sign, other):
        mask = np.arange(8) < np.array(lengths)[..., None]
        return np.allclose(aggregation.balanced(mask, np.array(sign)), other(mask, np.array(sign)), atol=1e-7)

    sides = [[1, 1, -1, -1]] * 2
    each_side = [[4, 4, 8, 8], [2, 2, 6, 6]]  # equal lengths on each side, equal group sizes
    mean_sides = [[2, 6, 3, 5], [1, 3, 2, 2]]  # equal mean lengths of both sides
    assert same(each_side, sides, aggregation.sequence_mean)
    assert not same(mean_sides, sides, aggregation.sequence_mean)
    assert same(mean_sides, sides, aggregation.group_mean)
    assert not same(each_side, sides, aggregation.group_mean)
    assert same([[2, 6, 3, 5], [4, 4, 4, 4]], sides, aggregation.token_mean)  # and equal tokens per group
    assert not same(mean_sides, sides, aggregation.token_mean)


def holder_weights(l, p):
    """The share of each token in the gradient of the power mean."""
    segments = jnp.ones(l.shape, bool)
    return np.asarray(jax.grad(lambda x: jnp.sum(ratio.power_mean(x, jnp.ones_like(x), segments, p=p)[:, 0]))(l))


def test_holders_weights_are_most_even_at_zero():
    with jax.enable_x64(True):
        l = jnp.asarray(np.random.default_rng(0).normal(size=(20, 12)) * 0.5)
        entropy = {
            p: -np.sum((w := holder_weights(l, p)) * np.log(w), -1) for p in (-4.0, -2.0, -0.5, 0.0, 0.5, 2.0, 4.0)
        }
    np.testing.assert_allclose(entropy[0.0], np.log(12), rtol=1e-12)
    for rising in ((-4.0, -2.0, -0.5, 0.0), (4.0, 2.0, 0.5, 0.0)):
        for low, high in itertools.pairwise(rising):
            assert np.all(entropy[low] < entropy[high])


def test_holders_limits_are_gspo_grpo_and_gmpo():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        l, sign = jnp.asarray(rng.normal(size=(8, 12)) * 0.4), np.sign(rng.normal(size=(8, 1)))
        mask = jnp.asarray(np.arange(12) < rng.integers(2, 13, (8, 1)))
        A = jnp.asarray(np.repeat(sign, 12, 1))
        weights = aggregation.sequence_mean(mask[None], jnp.asarray(sign[:, 0])[None])[0]
        batch = Batch(mask=mask, old_logp=jnp.zeros_like(l), advantages=A, weights=weights)

        def gradient(f):
            return np.asarray(jax.grad(policy_loss)(l, batch, f))

        clip, log_clip = (partial(f, low=0.2, high=0.2) for f in (ratio.clip, ratio.log_clip))
        pooled = {p: partial(ratio.power_mean, p=p) for p in (0.0, 1.0)}
        pairs = [
            (ratio.chain(pooled[0.0], clip), ratio.chain(ratio.sequence_mean, clip)),  # sequence clip: GSPO
            (ratio.chain(clip, pooled[1.0]), clip),  # token clip: GRPO
            (ratio.chain(log_clip, pooled[0.0]), ratio.chain(log_clip, ratio.sequence_mean)),  # GMPO
        ]
        for f, limit in pairs:
            np.testing.assert_allclose(gradient(f), gradient(limit), atol=1e-13)
        assert not np.allclose(gradient(ratio.chain(pooled[1.0], clip)), gradient(clip), atol=1e-3)
