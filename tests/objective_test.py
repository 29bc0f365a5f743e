import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Batch, PolicyGradient, Rollouts, advantage, algorithms, policy_loss, ratio
from rljax.objective import advantages_of, required_fields
from tests import papers

LOSS_AND_GRADIENT = jax.jit(jax.value_and_grad(policy_loss), static_argnums=2)
POOL = partial(ratio.power_mean, p=2.0)


def small_batch(**fields):
    ones = np.ones((2, 3), np.float32)
    return Batch(**{"mask": ones > 0, "old_logp": -ones, "advantages": ones, "weights": ones / 6, **fields})


def small_rollouts(**fields):
    rewards, mask, _ = papers.random_rollouts(0)
    zeros = np.zeros(mask.shape, np.float32)
    rewards = rewards.astype(np.float32)
    values = {"tokens": zeros.astype(np.int32), "mask": mask, "rewards": rewards, "old_logp": zeros}
    return Rollouts(**{**values, **fields})


@pytest.mark.parametrize("dead", ["weights", "advantages"])
@pytest.mark.parametrize("held", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("f", [ratio.token, ratio.soft_gate, ratio.sequence_mean, POOL])
def test_a_token_without_weight_or_advantage_contributes_exactly_zero(f, held, dead):
    here = np.arange(6).reshape(2, 3) == 1
    logp = np.where(here, np.float32(held), np.float32(-1.1))
    batch = small_batch(**{dead: np.where(here, np.float32(0), np.float32(1))})
    loss, gradient = LOSS_AND_GRADIENT(logp, batch, f)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert gradient[0, 1] == 0
    assert (gradient[1] != 0).all()
    spoilt = dataclasses.replace(batch, old_logp=np.where(here, np.float32(held), batch.old_logp))
    np.testing.assert_array_equal(LOSS_AND_GRADIENT(logp, spoilt, f)[0], loss)


def test_a_dead_token_with_a_number_still_counts_in_its_sequences_ratio():
    logp = np.array([[-1.0, -1.0, 2.0]], np.float32)
    batch = jax.tree.map(lambda x: x[:1], small_batch(weights=np.array([[1, 1, 0]] * 2, np.float32)))
    np.testing.assert_allclose(LOSS_AND_GRADIENT(logp, batch, ratio.sequence_mean)[0], -2 * np.exp(1.0), rtol=1e-6)


def test_only_logp_is_differentiated():
    logp, rewards = np.full((2, 3), -1.1, np.float32), small_rollouts().rewards

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def run(A, rewards):
        square = jnp.sum(advantages_of(advantage.mean_baseline, small_rollouts(rewards=rewards)) ** 2)
        return policy_loss(logp, small_batch(advantages=A), ratio.token) + square

    for gradient in run(np.ones((2, 3), np.float32), rewards):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_advantages_are_zero_outside_the_mask_and_get_what_they_name():
    rollouts = small_rollouts(
        proxy=np.ones(small_rollouts().mask.shape, np.float32), task=np.arange(4, dtype=np.float32)
    )

    def per_task(rewards, mask, *, task, proxy, scale=2.0):
        return jnp.broadcast_to(task[:, None, None] * proxy * scale, mask.shape)

    A = jax.jit(partial(advantages_of, per_task))(rollouts)
    np.testing.assert_array_equal(A, np.where(rollouts.mask, 2.0 * np.arange(4)[:, None, None], 0))


def test_missing_fields_are_named():
    with pytest.raises(ValueError, match=r"Rollouts\.proxy = None: expected .*optimal_token_baseline requires it"):
        advantages_of(algorithms.otb().advantage, small_rollouts())
    with pytest.raises(ValueError, match=r"clip requires 'low': expected a field of Batch; bind"):
        policy_loss(jnp.zeros((2, 3)), small_batch(), partial(ratio.clip, high=0.2))
    with pytest.raises(ValueError, match=r"Batch\.divergence = None: expected"):
        policy_loss(jnp.zeros((2, 3)), small_batch(), ratio.chain(lambda l, A, s, *, divergence: l))


def test_required_fields_are_those_without_a_value():
    assert required_fields(advantage.optimal_token_baseline) == {"proxy"}
    assert required_fields(partial(advantage.optimal_token_baseline, proxy=1)) == frozenset()
    assert required_fields(ratio.position_clip) == {"log_low", "log_high"}
    assert required_fields(partial(ratio.chain(ratio.clip), low=0.2)) == {"high"}


def test_shapes_and_dtypes_that_do_not_fit():
    logp, batch = jnp.zeros((2, 3)), small_batch()
    with pytest.raises(ValueError, match=r"logp has shape \(2, 2\): expected \(2, 3\), as mask"):
        policy_loss(logp[:, :2], batch, ratio.token)
    for name in ("old_logp", "advantages", "weights"):
        with pytest.raises(ValueError, match=rf"{name} has shape \(2, 1\): expected \(2, 3\), as mask"):
            policy_loss(logp, dataclasses.replace(batch, **{name: logp[:, :1]}), ratio.token)
    with pytest.raises(ValueError, match="segment_ids has shape"):
        policy_loss(logp, dataclasses.replace(batch, segment_ids=jnp.ones(3, int)), ratio.token)
    with pytest.raises(TypeError, match="segments has dtype"):
        policy_loss(logp, dataclasses.replace(batch, segment_ids=logp), ratio.token)
    with pytest.raises(TypeError, match="mask has dtype int32: expected bool"):
        policy_loss(logp, dataclasses.replace(batch, mask=jnp.ones((2, 3), int)), ratio.token)
    with pytest.raises(TypeError, match="ratio is a PolicyGradient: expected a function, such as the `ratio` of an"):
        policy_loss(logp, batch, algorithms.grpo())
    with pytest.raises(TypeError, match="logp has dtype complex64"):
        policy_loss(logp.astype(jnp.complex64), batch, ratio.token)
    with pytest.raises(ValueError, match=r"advantage <lambda> returned shape \(4, 5, 1\): expected \(4, 5, 8\)"):
        advantages_of(lambda rewards, mask: jnp.ones((4, 5, 1)), small_rollouts())


def test_bfloat16_is_summed_in_float32_and_float64_in_gives_float64():
    low = LOSS_AND_GRADIENT(np.full((2, 3), -1.1, jnp.bfloat16), small_batch(), ratio.token)[0]
    assert low.dtype == jnp.float32
    exact = -np.exp(1 + float(jnp.bfloat16(-1.1)))
    np.testing.assert_allclose(low, exact, rtol=1e-6)
    with jax.enable_x64(True):
        ones = np.ones((2, 3))
        batch = small_batch(old_logp=-ones, advantages=ones, weights=ones / 6)
        wide = LOSS_AND_GRADIENT(np.full((2, 3), -1.1), batch, ratio.token)[0]
        assert wide.dtype == jnp.float64
        np.testing.assert_allclose(wide, -np.exp(-0.1), rtol=1e-7)


def test_values_are_pytrees():
    batch = jax.jit(lambda b: jax.tree.map(lambda x: x[:1], b))(small_batch())
    assert isinstance(batch, Batch)
    assert batch.mask.shape == (1, 3)
    assert jax.tree.map(lambda x: x, small_rollouts()).proxy is None
    algorithm = PolicyGradient(advantage.mean_baseline, lambda mask, sign: mask, ratio.token)
    assert jax.jit(lambda a, x: a.ratio(x, x, x > 0))(algorithm, jnp.ones(2)).shape == (2,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        algorithm.ratio = ratio.clip  # type: ignore[misc]


@pytest.mark.parametrize("name", ["logp", "old_logp", "advantages", "weights"])
def test_integers_where_only_floating_numbers_make_sense(name):
    shape = (2, 3)
    arrays = {key: jnp.zeros(shape) for key in ("logp", "old_logp", "advantages", "weights")}
    arrays[name] = jnp.zeros(shape, jnp.int32)
    logp = arrays.pop("logp")
    with pytest.raises(TypeError, match=f"{name} has dtype int32: expected floating"):
        policy_loss(logp, Batch(mask=jnp.ones(shape, bool), **arrays), ratio.token)
