"""Penalties: weighted sums over a batch's tokens that are simply added to the policy loss.

    loss = policy_loss(logp, batch, ratio) + 0.001 * kl(logp, batch) + 0.01 * entropy_bonus(entropy, batch)

All use the batch's weights, so microbatches and shards add here too. An aggregation that gives some tokens no weight
(`balanced`, where A = 0) exempts them, and so does leaving out the groups that `rewards.informative` finds to carry
no signal: to penalise them, `dataclasses.replace` the weights, or keep them in the batch.

An estimator maps ℓ = log π_θ − log π_ref of a token sampled from π_θ to an estimate of KL(π_θ ‖ π_ref), nats
(Schulman 2020, "Approximating KL divergence").
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from rljax._checks import accumulators, require_between, require_mask, require_shape
from rljax.objective import Batch

__all__ = ["entropy_bonus", "k1", "k2", "k3", "kl", "straight_through", "value_loss"]

Tokens = Float[Array, "*B T"]


def k1(log_ratio: Tokens) -> Tokens:
    """ℓ: unbiased, may be negative; as a loss its expected gradient is 0: put it in a reward, or straight-through."""
    return log_ratio


def k2(log_ratio: Tokens) -> Tokens:
    """½ℓ²: biased, never negative; its expected on-policy gradient is that of the KL."""
    return 0.5 * log_ratio**2


def k3(log_ratio: Tokens) -> Tokens:
    """e^{−ℓ} − 1 + ℓ: unbiased, never negative (GRPO's). Not clamped: a clamp would zero its gradient."""
    return jnp.expm1(-log_ratio) + log_ratio


def straight_through(value: Callable, gradient: Callable = k2) -> Callable:
    """An estimator with the value of one and the gradient of another, k2's unless said.

    sg(value(ℓ) − gradient(ℓ)) + gradient(ℓ)
    """

    def estimator(log_ratio: Tokens) -> Tokens:
        differentiated = gradient(log_ratio)
        return lax.stop_gradient(value(log_ratio) - differentiated) + differentiated

    return estimator


def kl(logp: Tokens, batch: Batch, *, estimator: Callable = k3) -> Float[Array, ""]:
    """Σ w · k(ℓ) with ℓ = logp − ref_logp: an estimate of KL(π_θ ‖ π_ref), nats, where the weights sum to one.

    ValueError where `batch.ref_logp` is None or shapes differ.
    """
    if batch.ref_logp is None:
        raise ValueError("Batch.ref_logp is None: give Batch(ref_logp=…), log π_ref of the batch's tokens")
    logp, ref_logp, weights, live = _weighted(batch, logp=logp, ref_logp=batch.ref_logp)
    return _sum(weights, estimator(jnp.where(live, logp - ref_logp, 0.0)), live)


def entropy_bonus(entropy: Tokens, batch: Batch) -> Float[Array, ""]:
    """−Σ w · H: minus the policy's entropy, nats, from the pass that gives log π; a positive coefficient raises it."""
    entropy, weights, live = _weighted(batch, entropy=entropy)
    return -_sum(weights, entropy, live)


def value_loss(
    values: Tokens, batch: Batch, *, returns: Tokens, old_values: Tokens, limit: float | Array
) -> Float[Array, ""]:
    """PPO's value loss, clipped about the values of the rollout (1707.06347). limit ≥ 0.

    Σ w · ½ max((v − R)², (clip(v, v_old − limit, v_old + limit) − R)²)
    """
    require_between("limit", limit, 0)
    values, returns, old_values, weights, live = _weighted(batch, values=values, returns=returns, old_values=old_values)
    limit = jnp.asarray(limit, values.dtype)
    returns, old_values = lax.stop_gradient((returns, old_values))
    near = jnp.where(jnp.abs(values - old_values) > limit, old_values + jnp.sign(values - old_values) * limit, values)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    return _sum(weights, 0.5 * jnp.where(clipped > plain, clipped, plain), live)


def _weighted(batch: Batch, **arrays) -> tuple[Array, ...]:
    """The arrays in the dtype of sums and 0 outside the mask, then the weights, and where they count."""
    mask = require_mask(batch.mask)
    require_shape(mask.shape, "mask", weights=batch.weights, **arrays)
    *arrays, weights = accumulators(**arrays, weights=batch.weights)
    live = mask & (weights != 0)
    return *(jnp.where(live, x, 0.0) for x in arrays), lax.stop_gradient(jnp.where(live, weights, 0.0)), live


def _sum(weights: Array, x: Array, live: Array) -> Array:
    return jnp.sum(weights * jnp.where(live, x, 0.0))
