import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Batch, aggregation, regression
from tests import papers, papers_losses


def case(seed=0):
    """Rewards and a mask of groups, and rewards of the reference's samples; all samples of prompt 1 are wrong."""
    rewards, mask, _ = papers.random_rollouts(seed)
    reference = np.random.default_rng(seed).normal(size=(4, 8))
    reference[1] = -np.abs(reference[1])
    return rewards, mask, reference


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_the_advantage_is_its_formula(beta):
    rewards, mask, reference = case()
    advantage = jax.jit(regression.optimal_advantage)
    with jax.enable_x64(True):
        A = advantage(rewards, mask, reference_rewards=reference, beta=beta)
        dense = advantage(mask * rewards[..., None], mask, reference_rewards=reference, beta=beta)
    assert papers.agree(A, papers_losses.optimal_advantage(rewards, mask, reference, beta))
    lengths = mask.sum(-1)
    assert papers.agree(dense, papers_losses.optimal_advantage(rewards * lengths, mask, reference, beta))


def test_prompts_without_a_right_sample_are_left_out():
    _, _, reference = case()
    reference[2, 3] = np.nan
    np.testing.assert_array_equal(regression.solvable(jnp.asarray(reference)), [True, False, True, True])


def rows(seed=0):
    rng = np.random.default_rng(seed)
    logp, ref, A = (rng.normal(size=(4, 6)) for _ in range(3))
    mask = papers.random_mask(rng, (4, 6))
    mask[:, 0] = True
    A = np.repeat(A[:, :1], 6, axis=1)
    weights = np.asarray(aggregation.sequence_mean(mask[None], np.ones((1, 4))))[0].astype(float)
    return logp, Batch(mask=mask, old_logp=ref, advantages=A, weights=weights, ref_logp=ref)


def test_packed_sequences_and_microbatches_add_to_the_whole():
    logp, batch = rows()
    run = jax.jit(jax.value_and_grad(regression.a2po), static_argnames="beta")
    pack = lambda x: x.reshape(2, 12)  # noqa: E731
    ids = np.repeat(np.array([[1, 2]] * 2, np.int32), 6, axis=1)
    with jax.enable_x64(True):
        value, gradient = run(logp, batch, beta=0.3)
        packed = run(pack(logp), dataclasses.replace(jax.tree.map(pack, batch), segment_ids=ids), beta=0.3)
        halves = [run(*jax.tree.map(lambda x, s=s: x[s], (logp, batch)), beta=0.3) for s in (slice(2), slice(2, 4))]
    assert papers.agree(packed[0], value)
    assert papers.agree(packed[1], pack(gradient))
    assert papers.agree(halves[0][0] + halves[1][0], value)
    assert np.max(np.abs(gradient)) > 0.01


def test_the_optimum_is_the_tilted_reference():
    """π* ∝ π_ref e^{R/β} has loss 0 with V* over all completions and the same β; π_ref itself has a positive loss."""
    beta, ref, R = 0.7, np.log([[0.2], [0.5], [0.3]]), np.array([1.0, 0.0, 0.5])
    value = beta * np.log(np.sum(np.exp(ref[:, 0] + R / beta)))
    A = (R - value)[:, None]
    batch = Batch(mask=np.ones((3, 1), bool), old_logp=ref, advantages=A, weights=np.full((3, 1), 1 / 3), ref_logp=ref)
    tilted = ref + A / beta
    assert abs(np.sum(np.exp(tilted)) - 1) < 1e-12
    with jax.enable_x64(True):
        assert regression.a2po(jnp.asarray(tilted), batch, beta=beta) < 1e-20
        assert regression.a2po(jnp.asarray(ref), batch, beta=beta) > 0.01


def test_arguments_that_do_not_fit():
    logp, batch = rows()
    with pytest.raises(ValueError, match=r"Batch\.ref_logp = None: expected log"):
        regression.a2po(logp, dataclasses.replace(batch, ref_logp=None))
    with pytest.raises(ValueError, match="beta = 0: expected"):
        regression.a2po(logp, batch, beta=0)
    rewards, mask, reference = case()
    with pytest.raises(ValueError, match=r"reference_rewards has shape \(3,\): expected \(4,\)"):
        regression.optimal_advantage(rewards, mask, reference_rewards=reference[:3])
