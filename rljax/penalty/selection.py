"""Tokens selected to control the entropy: by their covariance with the advantage, or by their own entropy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from rljax._checks import accumulators, require_between, require_mask, require_shape, require_share
from rljax._sharding import gathered
from rljax.objective import Batch, earns, policy_loss
from rljax.penalty._weighted import Tokens, trained


def covariance(logp: Tokens, batch: Batch) -> Tokens:
    """c_t = (A_t − Ā)(log π_t − mean log π), means over the batch's trained tokens; 0 elsewhere. Without gradient.

    A token of large c lowers the entropy most: it is likely, and rewarded for it.

    >>> batch = Batch(mask=jnp.ones(3, bool), weights=jnp.ones(3), old_logp=jnp.array([-1.5, -2.0, -3.0]),
    ...               advantages=jnp.array([3.0, 0.0, 0.0]))
    >>> covariance(jnp.array([-1.0, -2.0, -3.0]), batch).tolist()  # (2, −1, −1) · (1, 0, −1)
    [2.0, -0.0, 1.0]
    """
    mask = trained(batch)
    require_shape(mask.shape, "mask", logp=logp, advantages=batch.advantages)
    logp, advantages = accumulators(logp=logp, advantages=batch.advantages)
    count = jnp.maximum(jnp.sum(mask), 1).astype(logp.dtype)

    def centered(x):
        return jnp.where(mask, x - jnp.sum(jnp.where(mask, x, 0.0)) / count, 0.0)

    return lax.stop_gradient(centered(advantages) * centered(logp))


def clip_cov(
    logp: Tokens,
    batch: Batch,
    ratio: Callable,
    key: Array,
    *,
    share: float | Array = 2e-4,
    low: float | Array = 1.0,
    high: float | Array = 5.0,
) -> Bool[Array, "*B T"]:
    """Clip-Cov: true at the tokens to keep; k random ones of covariance in (low, high) are dropped (2505.22617).

    At most k = max(1, ⌊share · tokens⌋), among those that the ratio's own clip has not dropped already. To use it:
    `dataclasses.replace(batch, weights=jnp.where(kept, batch.weights, 0))`. share in [0, 1]; low, high ≥ 0.

    >>> batch = Batch(mask=jnp.ones(3, bool), weights=jnp.ones(3), old_logp=jnp.array([-1.5, -2.0, -3.0]),
    ...               advantages=jnp.array([3.0, 0.0, 0.0]))
    >>> from rljax import ratio
    >>> clip_cov(jnp.array([-1.0, -2.0, -3.0]), batch, ratio.token, jax.random.key(0)).tolist()  # c = 2, 0, 1
    [False, True, True]
    """
    require_between("low", low, 0)
    require_between("high", high, 0)
    c = covariance(logp, batch)
    moved = jax.grad(policy_loss)(lax.stop_gradient(logp), batch, ratio) != 0
    candidates = earns(batch) & moved & (c > low) & (c < high)
    lots = jnp.where(candidates, jax.random.uniform(key, c.shape, jnp.float32), -jnp.inf)
    return ~(candidates & largest(lots, number_of(trained(batch), share)))


def confident_negatives(entropy: Tokens, batch: Batch, *, threshold: float | Array) -> Bool[Array, "*B T"]:
    """True at the tokens to keep: those of A < 0 whose entropy is above the threshold, nats, are dropped (2512.12967).

    Pushing an uncertain token down spreads its mass over tokens that nobody looked at.

    >>> batch = Batch(mask=jnp.ones(3, bool), weights=jnp.ones(3), old_logp=jnp.zeros(3),
    ...               advantages=jnp.array([-1.0, -1.0, 1.0]))
    >>> confident_negatives(jnp.array([0.5, 2.0, 2.0]), batch, threshold=1.0).tolist()
    [True, False, True]
    """
    mask = trained(batch)
    require_shape(mask.shape, "mask", entropy=entropy, advantages=batch.advantages)
    (entropy,) = accumulators(entropy=entropy)
    return ~(mask & (batch.advantages < 0) & (entropy > jnp.asarray(threshold, entropy.dtype)))


def top_entropy(
    entropy: Float[Array, "P G T"], mask: Bool[Array, "P G T"], *, share: float | Array = 0.2
) -> Bool[Array, "P G T"]:
    """The mask at the tokens of highest entropy: k = max(1, ⌊share · tokens⌋) of those it is given (2506.01939).

    To train those alone, give the result as the mask; to keep the others in the denominators, zero their weights. The
    earlier of equals, and a NaN before all others. Of the whole step's tokens: microbatches do not add. share in
    [0, 1]. Not verified: the share is the paper's as quoted by others, no paper text.

    >>> entropy, mask = jnp.array([[[0.1, 2.0, 0.5, 3.0, 9.0]]]), jnp.array([[[True, True, True, True, False]]])
    >>> top_entropy(entropy, mask, share=0.5).tolist()
    [[[False, True, False, True, False]]]
    """
    mask = require_mask(mask)
    require_shape(mask.shape, "mask", entropy=entropy)
    (entropy,) = accumulators(entropy=entropy)
    entropy = jnp.where(jnp.isnan(entropy), jnp.inf, entropy)
    return mask & largest(jnp.where(mask, entropy, -jnp.inf), number_of(mask, share))


def number_of(mask: Array, share) -> Array:
    """k = max(1, ⌊share · tokens⌋)."""
    require_share("share", share)
    return jnp.maximum(1, jnp.floor(share * jnp.sum(mask).astype(jnp.float32))).astype(jnp.int32)


def largest(x: Array, k: Array) -> Array:
    """True at the k largest values, the earlier of equals."""
    x = gathered(x)
    order = jnp.argsort(-x.reshape(-1), stable=True)
    rank = jnp.zeros(x.size, jnp.int32).at[order].set(jnp.arange(x.size, dtype=jnp.int32))
    return (rank < k).reshape(x.shape)
