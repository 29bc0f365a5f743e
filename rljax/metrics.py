"""What is reported, from ℓ, f, A, w, the mask and ∂L/∂logp, so that one file serves every algorithm.

`policy_sums` of microbatches (or shards) add; `policy_summary` of their total divides once.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Real

from rljax._checks import accumulators, require_mask, require_shape
from rljax.objective import Batch, earns, log_ratios, policy_loss
from rljax.rewards import informative

__all__ = ["policy_summary", "policy_sums", "reward_summary"]


def policy_sums(logp: Float[Array, "*B T"], batch: Batch, ratio: Callable) -> dict[str, Float[Array, ""]]:
    """The sums over a batch's tokens that `policy_summary` reads; those of its parts add. Costs one ∂L/∂logp."""
    gradient = jax.grad(policy_loss)(logp, batch, ratio)
    log_ratio, weights = accumulators(log_ratio=log_ratios(logp, batch), weights=batch.weights)
    weights = jnp.where(batch.mask, weights, 0.0)
    moved = jnp.where(batch.mask, jnp.exp(log_ratio), 0.0)
    return {
        "tokens": jnp.sum(batch.mask).astype(log_ratio.dtype),
        "weight": jnp.sum(weights),
        "clipped": jnp.sum(jnp.where(earns(batch) & (gradient == 0), weights, 0.0)),
        "k1": -jnp.sum(log_ratio),
        "k3": jnp.sum(jnp.expm1(log_ratio) - log_ratio),
        "ratio": jnp.sum(moved),
        "ratio_squared": jnp.sum(moved**2),
    }


def policy_summary(sums: Mapping[str, Float[Array, ""]]) -> dict[str, Float[Array, ""]]:
    """The metrics of an optimizer step, from the sums over all its tokens; a step without tokens gives zeros.

    - `clip_share`: Σw of the tokens with w·A ≠ 0 and ∂L/∂logp = 0, over Σw;
    - `kl`, `kl_k1`: token means of r − 1 − ℓ and −ℓ, estimates of KL(π_old ‖ π_θ), nats;
    - `ratio_mean`: token mean of r;  `effective_samples`: (Σr)²/(n Σr²), 1 where every r is the same.
    """

    def over(numerator, denominator):
        empty = denominator == 0
        return jnp.where(empty, 0.0, numerator / jnp.where(empty, 1.0, denominator))

    return {
        "clip_share": over(sums["clipped"], sums["weight"]),
        "kl": over(sums["k3"], sums["tokens"]),
        "kl_k1": over(sums["k1"], sums["tokens"]),
        "ratio_mean": over(sums["ratio"], sums["tokens"]),
        "effective_samples": over(over(sums["ratio"], sums["tokens"]) * sums["ratio"], sums["ratio_squared"]),
    }


def reward_summary(rewards: Real[Array, "P G"], mask: Bool[Array, "P G T"]) -> dict[str, Float[Array, ""]]:
    """Of a rollout's present completions: `reward` and `reward_std` (over all of them, divided by their number),
    `length` in trained tokens, and `informative`, the share of groups whose rewards differ."""
    mask = require_mask(mask, "P G T")
    require_shape(mask.shape[:2], "mask's leading axes", rewards=rewards)
    (rewards,) = accumulators(rewards=rewards)
    present, lengths = jnp.any(mask, axis=-1), jnp.sum(mask, axis=-1).astype(rewards.dtype)

    def share(values, among):
        count = jnp.maximum(jnp.sum(among), 1).astype(rewards.dtype)
        return jnp.sum(jnp.where(among, values, 0.0)) / count

    mean = share(rewards, present)
    return {
        "reward": mean,
        "reward_std": jnp.sqrt(share((rewards - mean) ** 2, present)),
        "length": share(lengths, present),
        "informative": share(informative(rewards, mask).astype(rewards.dtype), jnp.any(present, axis=-1)),
    }
