import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import (
    Batch,
    PolicyGradient,
    Rollouts,
    advantage,
    advantages_of,
    aggregation,
    algorithms,
    correction,
    make_batch,
    policy_loss,
    ratio,
)
from tests.examples import ALGORITHMS, make

P, G, T = 2, 3, 4
RNG = np.random.default_rng(0)
MASK = np.arange(T) < RNG.integers(2, T + 1, (P, G, 1))
ROLLOUTS = Rollouts(
    tokens=np.zeros((P, G, T), np.int32),
    mask=MASK,
    rewards=RNG.integers(0, 2, (P, G)).astype(np.float32) + np.eye(P, G, dtype=np.float32),
    old_logp=RNG.normal(-1, 0.3, (P, G, T)).astype(np.float32),
    sampled_logp=RNG.normal(-1, 0.3, (P, G, T)).astype(np.float32),
)
REINFORCE = PolicyGradient(advantage.mean_baseline, aggregation.token_mean, ratio.token)


def test_old_logp_of_the_same_parameters_leaves_reinforces_gradient():
    """On-policy, ∂L/∂logp = −w A, also if old_logp is the same array as logp."""

    def loss(logp):
        batch = Batch(mask=jnp.ones(2, bool), old_logp=logp, advantages=jnp.ones(2), weights=jnp.full(2, 0.5))
        return policy_loss(logp, batch, ratio.token)

    assert jax.grad(loss)(jnp.full(2, -1.0)).tolist() == [-0.5, -0.5]


@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n not in ("aepo", "cppo", "otb", "ppo", "remax")])
def test_a_batch_made_inside_a_loss_is_constant(name):
    algorithm = make(name)

    def loss(shift, inside):
        logp = ROLLOUTS.old_logp + shift
        traced = dataclasses.replace(ROLLOUTS, old_logp=logp, rewards=ROLLOUTS.rewards + jnp.sum(shift))
        batch = make_batch(algorithm, traced if inside else jax.tree.map(jax.lax.stop_gradient, traced))
        return policy_loss(logp, batch, algorithm.ratio)

    zero = jnp.zeros((P, G, T))
    inside, outside = (jax.jit(jax.grad(loss), static_argnums=1)(zero, flag) for flag in (True, False))
    np.testing.assert_array_equal(inside, outside)
    assert np.any(np.asarray(inside) != 0)


def test_the_batch_is_the_advantage_and_the_aggregation():
    batch = jax.jit(make_batch)(algorithms.balanced_grpo(), ROLLOUTS)
    A = advantage.group_relative(ROLLOUTS.rewards, MASK)
    np.testing.assert_allclose(batch.advantages, A, rtol=1e-6)
    np.testing.assert_allclose(batch.weights, aggregation.balanced(MASK, aggregation.side(A, MASK)), rtol=1e-6)
    assert batch.weights.shape == (P, G, T)
    np.testing.assert_array_equal(batch.old_logp, ROLLOUTS.old_logp)
    np.testing.assert_allclose(advantages_of(advantage.group_relative, ROLLOUTS), A, rtol=1e-6)


@pytest.mark.parametrize("name", ["grpo", "gspo", "ctpo", "rloo", "holder_po"])
def test_a_segment_id_of_0_is_not_trained(name):
    algorithm = make(name)
    ids = MASK.astype(np.int32)
    ids[:, :, 0] = 0
    with_ids = dataclasses.replace(ROLLOUTS, segment_ids=ids)
    masked = dataclasses.replace(ROLLOUTS, mask=MASK & (ids > 0))
    logp = ROLLOUTS.old_logp + RNG.normal(0, 0.01, MASK.shape).astype(np.float32)

    @jax.jit
    def both(rollouts):
        batch = make_batch(algorithm, rollouts)
        return jax.value_and_grad(policy_loss)(logp, batch, algorithm.ratio)

    (value, gradient), (expected, wanted) = both(with_ids), both(masked)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-6, atol=1e-9)
    assert np.all(np.asarray(gradient)[:, :, 0] == 0)
    assert np.any(np.asarray(gradient) != 0)


def replaced(**functions) -> PolicyGradient:
    return dataclasses.replace(REINFORCE, **functions)


@pytest.mark.parametrize(
    ("algorithm", "error", "message"),
    [
        (algorithms.grpo, TypeError, r"algorithm = grpo: expected a PolicyGradient.*call it, grpo\(…\)"),
        (replaced(advantage=lambda rewards, mask: rewards), ValueError, r"advantage <lambda> returned shape \(2, 3\)"),
        (replaced(advantage=lambda rewards, mask: mask.astype("int32")), TypeError, "returned dtype int"),
        (replaced(aggregation=lambda mask, sign: mask.sum()), ValueError, r"aggregation <lambda> returned shape \(\)"),
        (replaced(aggregation=lambda mask, sign: mask), TypeError, "aggregation <lambda> returned dtype bool"),
        (replaced(aggregation=lambda mask, sign, *, entropy: mask), ValueError, r"Rollouts\.entropy = None: .*req"),
    ],
)  # fmt: skip
def test_what_a_function_returns_is_checked(algorithm, error, message):
    with pytest.raises(error, match=message):
        make_batch(algorithm, ROLLOUTS)


@pytest.mark.parametrize("name", ["tokens", "old_logp", "ref_logp", "entropy_coefficient"])
def test_what_a_batch_takes_from_rollouts_has_the_masks_shape(name):
    wrong = dataclasses.replace(ROLLOUTS, **{name: np.zeros((P, G, T + 1), np.float32)})
    with pytest.raises(ValueError, match=rf"{name} has shape \(2, 3, 5\): expected \(2, 3, 4\), as mask"):
        make_batch(REINFORCE, wrong)


def test_what_a_ratio_returns_is_checked():
    batch = make_batch(REINFORCE, ROLLOUTS)
    with pytest.raises(ValueError, match=r"ratio <lambda> returned shape \(2, 3, 1\): expected \(2, 3, 4\)"):
        policy_loss(ROLLOUTS.old_logp, batch, lambda l, A, segments: l[..., :1])
    with pytest.raises(TypeError, match="ratio <lambda> returned dtype int32"):
        policy_loss(ROLLOUTS.old_logp, batch, lambda l, A, segments: l.astype(int))


def test_a_token_correction_in_an_algorithm():
    """−Σ w min(ρ, 2) A r, with ρ = e^{old_logp − sampled_logp}."""
    corrected = correction.weighted(aggregation.token_mean, partial(correction.token_truncated, cap=2.0))
    algorithm = replaced(aggregation=corrected)
    batch = jax.jit(make_batch)(algorithm, ROLLOUTS)
    rho = np.minimum(np.exp(ROLLOUTS.old_logp - ROLLOUTS.sampled_logp), 2.0)
    np.testing.assert_allclose(batch.weights, np.where(MASK, rho / MASK.sum(), 0), rtol=1e-5)
    assert repr(algorithm.aggregation) == "weighted(token_mean, token_truncated(cap=2.0))"
    assert jax.tree.leaves(algorithm) == [2.0]
    with pytest.raises(ValueError, match=r"Rollouts\.sampled_logp = None: .* requires"):
        make_batch(algorithm, dataclasses.replace(ROLLOUTS, sampled_logp=None))


def test_a_rejection_affects_only_the_function_that_it_wraps():
    mismatch = np.zeros((1, 3, 2), np.float32)
    mismatch[0, 2] = -20.0
    rollouts = Rollouts(
        tokens=np.zeros((1, 3, 2), np.int32),
        mask=np.ones((1, 3, 2), bool),
        rewards=np.array([[1.0, 0.0, 5.0]], np.float32),
        old_logp=mismatch,
        sampled_logp=0 * mismatch,
    )

    def of(**functions):
        batch = make_batch(replaced(**functions), rollouts)
        return np.asarray(batch.advantages)[0, :, 0].tolist(), np.round(batch.weights[0, :, 0] * 12).tolist()

    token_mean, mean, veto = aggregation.token_mean, advantage.mean_baseline, correction.veto
    assert of() == ([-1, -2, 3], [2, 2, 2])
    assert of(aggregation=correction.weighted(token_mean, veto)) == ([-1, -2, 3], [2, 2, 0])
    assert of(aggregation=correction.aggregation_of_kept(token_mean, veto)) == ([-1, -2, 3], [3, 3, 0])
    assert of(advantage=correction.advantage_of_kept(mean, veto)) == ([0.5, -0.5, 0], [2, 2, 2])
    with pytest.raises(ValueError, match=r"keep = opsm: expected a function of \(mismatch, mask\)"):
        of(advantage=correction.advantage_of_kept(mean, partial(correction.opsm, limit=0.1)))
    opsm = correction.weighted(token_mean, partial(correction.opsm, limit=0.1))
    assert of(aggregation=opsm) == ([-1, -2, 3], [2, 2, 2])  # kept, since its advantage is positive


def test_corrections_of_packed_rows_are_those_of_their_sequences():
    mismatch = np.log(np.array([[1.5, 1.25, 9.0, 0.5, 0.25]], np.float32))
    ids = np.array([[1, 1, 0, 2, 2]], np.int32)
    mask = np.ones((1, 5), bool)
    rows = [(mismatch[:, :2], mask[:, :2]), (mismatch[:, 3:], mask[:, 3:])]
    for weight in (correction.sequence_truncated, correction.sequence_masked):
        packed = weight(mismatch, mask, cap=1.5, segment_ids=ids)[0]
        apart = [weight(*row, cap=1.5)[0] for row in rows]
        np.testing.assert_allclose(packed, [*apart[0], 0, *apart[1]], rtol=1e-6)
    for weight in (partial(correction.token_truncated, cap=1.3), partial(correction.icepop, low=0.4, high=1.3)):
        np.testing.assert_allclose(weight(mismatch, mask, segment_ids=ids), weight(mismatch, ids > 0), rtol=1e-6)
    sides, alone = np.full((1, 5), -1), np.array([-1])
    packed = correction.opsm(mismatch, mask, sides, limit=0.1, segment_ids=ids)[0]
    first, second = (bool(correction.opsm(*row, alone, limit=0.1)[0]) for row in rows)
    assert (packed[0], packed[1], packed[3], packed[4]) == (first, first, second, second) == (True, True, False, False)
    keeps = (
        partial(correction.geometric, low=0.5, high=2.0),
        partial(correction.k3, limit=0.1),
        partial(correction.veto, least=0.3),
    )
    for keep in keeps:
        packed = keep(mismatch, mask, segment_ids=ids)[0]
        first, second = (bool(keep(*row)[0]) for row in rows)
        assert packed[0] == packed[1] == first
        assert packed[3] == packed[4] == second
        assert first
        assert not second


def test_nan_shows():
    A = jnp.array([[[1.0], [-1.0]], [[jnp.nan], [1.0]]])
    mask = jnp.ones((2, 2, 1), bool)
    weights = np.asarray(aggregation.balanced(mask, aggregation.side(A, mask)))
    assert np.isnan(weights[1]).all()
    np.testing.assert_allclose(weights[0], 0.25)
    unknown, ones = jnp.full((1, 2), jnp.nan), jnp.ones((1, 2), bool)
    for weight in (correction.token_truncated, correction.sequence_truncated, correction.icepop,
                   correction.sequence_masked):  # fmt: skip
        assert np.isnan(weight(unknown, ones)).all(), weight


@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n not in ("aepo", "cppo", "otb", "ppo", "remax")])
def test_no_prompts_are_a_loss_of_zero(name):
    algorithm, empty = make(name), np.zeros((0, G, T), np.float32)
    rollouts = Rollouts(empty.astype(np.int32), empty.astype(bool), empty[..., 0], empty, ref_logp=empty)
    batch = make_batch(algorithm, rollouts)
    value, gradient = jax.value_and_grad(policy_loss)(empty, batch, algorithm.ratio)
    assert value == 0
    assert gradient.shape == (0, G, T)
