"""Algorithms from rollouts to gradients: the papers' combined formulas, and relations between algorithms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Batch, Rollouts, aggregation, algorithms, policy_loss
from rljax.objective import PolicyGradient, advantages_of, required_fields
from tests import papers
from tests.examples import ALGORITHMS, make
from tests.together import together

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


def small_move(seed):
    """Rollouts of a policy that moved slightly: some tokens and sequences are clipped, others are not."""
    rewards, mask, _ = papers.random_rollouts(seed)
    rng = np.random.default_rng(seed)
    l = rng.normal(size=mask.shape) * rng.choice([1e-4, 0.02, 0.3], mask.shape[:2])[..., None] * mask
    return rewards, mask, papers.random_fields(seed, rewards, mask), l


def train_step(algorithm, rewards, mask, fields, l):
    zeros = jnp.zeros_like(l)
    given = {name: fields[name] for name in required_fields(algorithm.advantage)}
    tokens = zeros.astype(jnp.int32)
    rollouts = Rollouts(**{"tokens": tokens, "mask": mask, "rewards": rewards, "old_logp": zeros} | given)
    A = advantages_of(algorithm.advantage, rollouts)
    w = algorithm.aggregation(mask, aggregation.side(A, mask))
    loss, gradient = jax.value_and_grad(policy_loss)(
        l, Batch(mask, zeros, A, w, divergence=zeros + 0.1), algorithm.ratio
    )
    return A, w, loss, gradient


def test_every_algorithm_is_among_the_examples():
    assert set(ALGORITHMS) == set(algorithms.__all__)


@together
def steps(rewards, mask, fields, l):
    return {name: train_step(make(name), rewards, mask, fields, l) for name in ALGORITHMS}


@every_algorithm
def test_a_step_is_the_papers(name):
    rewards, mask, fields, l = small_move(0)
    (advantage, weigh, ratio), wide = ALGORITHMS[name].paper, ALGORITHMS[name].batch_wide
    named = {field: fields[field] for field in required_fields(make(name).advantage)}
    A = (advantage if wide else papers.over_groups(advantage))(rewards, mask, **named)
    w = weigh(mask, np.sign(A.sum(-1)))
    flat = [x.reshape(-1, x.shape[-1]) for x in (l, A, w, mask.astype(int))]
    with jax.enable_x64(True):
        ours = steps(rewards, mask, fields, l)[name]
    assert papers.agree(ours[0], A)
    assert papers.agree(ours[1], w)
    assert papers.agree(ours[2], papers.policy_loss(ratio, *flat))
    gradient = papers.policy_gradient(ratio, *flat).reshape(mask.shape)
    assert papers.agree(ours[3], gradient)
    assert not papers.agree(0 * ours[3], gradient)


@every_algorithm
def test_hyper_parameters_are_keywords_and_make_a_value(name):
    assert isinstance(make(name), PolicyGradient)
    with pytest.raises(TypeError):
        getattr(algorithms, name)(0.2)


def test_a_schedule_may_be_traced():
    given = small_move(1)

    @jax.jit
    def gradients(step, given):
        powers = algorithms.holder_schedule(step), -1.0
        return [train_step(algorithms.holder_po(p=p), *given)[3] for p in powers]

    scheduled, fixed = gradients(375, given)
    np.testing.assert_allclose(scheduled, fixed, rtol=1e-5, atol=1e-8)
    assert not np.allclose(gradients(0, given)[0], fixed, rtol=1e-3)


def test_the_schedule_is_linear_and_then_stays():
    schedule = jax.jit(algorithms.holder_schedule)
    p = [float(schedule(step)) for step in (0, 125, 250, 500, 9000)]
    np.testing.assert_allclose(p, [2, 1, 0, -2, -2])


def test_holder_at_zero_is_gspo_with_its_bounds():
    both = algorithms.holder_po(p=0.0), algorithms.gspo(low=0.2, high=0.2)
    ours, theirs = jax.jit(lambda *given: [train_step(a, *given)[2:] for a in both])(*small_move(2))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6)


def test_holder_token_clip_is_grpo_at_one_and_gmpo_at_zero():
    """With GMPO's bounds set to PPO's in log space, both clips are equal."""
    bounds = {"low": float(-np.log(0.8)), "high": float(np.log(1.2))}
    pairs = [
        (algorithms.holder_po_token_clip(p=1.0), algorithms.grpo()),
        (algorithms.holder_po_token_clip(p=0.0), algorithms.gmpo(**bounds)),
    ]
    found = jax.jit(lambda *given: [[train_step(a, *given)[2:] for a in pair] for pair in pairs])(*small_move(3))
    for ours, theirs in found:
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-7)
        assert np.max(np.abs(theirs[1])) > 1e-3
