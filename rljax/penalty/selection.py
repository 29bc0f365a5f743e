"""Selections of tokens by their covariance with the advantage or by their entropy."""

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
    """The covariance of each token's log-probability with its advantage, without gradient (2505.22617).

        c_t = (A_t − mean A)(logp_t − mean logp),    means over the trained tokens of the batch

    `logp` [..., T] is log π_θ in nats; `batch` has A and the mask. Returns c, [..., T], in nats times the unit of A; 0
    at other tokens. Tokens with a large c (likely with a high A, or unlikely with a low A) lower the entropy most;
    `kl_cov` and `clip_cov` select them.

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
    """Clip-Cov: removes k random tokens with a large covariance from the policy loss (2505.22617).

        k = max(1, ⌊share · tokens⌋) of the tokens with low < c < high,    c from `covariance`

    Only tokens with a gradient are candidates, so clipped tokens do not count toward k. To apply the result, call
    `dataclasses.replace(batch, weights=jnp.where(kept, batch.weights, 0))`. `kl_cov` instead adds a penalty.

    Args:
      logp: log π_θ, [..., T], in nats.
      batch: Batch of the whole optimizer step.
      ratio: Ratio f of the policy loss, as in `policy_loss`.
      key: Random key that chooses the k tokens.
      share: Greatest share of the trained tokens that is removed, in [0, 1].
      low: Lower bound of c; low ≥ 0.
      high: Upper bound of c; high ≥ 0.

    Returns:
      True at the tokens to keep, [..., T].

    Raises:
      ValueError: If share, low or high is out of range.

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
    """True at the tokens to keep, [..., T]; high-entropy tokens with A < 0 are dropped (QwenLong-L1.5, 2512.12967).

        keep unless A_t < 0 and entropy_t > threshold

    `entropy` [..., T] and `threshold` are in nats; `batch` has A and the mask. Lowering the probability of one token of
    a flat distribution raises those of many tokens that no reward has judged. Apply the result as in `clip_cov`. Unlike
    `advantage.without_negatives`, it drops single tokens, not completions.

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
    """True at the trained tokens of highest entropy, [P, G, T] (2506.01939).

        the k tokens of highest entropy,    k = max(1, ⌊share · tokens⌋)

    `entropy` [P, G, T] is in nats, `mask` [P, G, T] is true at the trained tokens of the whole optimizer step, and
    `share` is in [0, 1]. Of equal entropies the earlier token is selected; NaN counts as the highest. Use the result as
    the mask; or, to count the other tokens in the denominators of w, set their weights to 0 instead. Unlike in
    `confident_negatives`, the number of tokens is fixed. Raises ValueError if share is outside [0, 1]. The default
    share is quoted from other sources, not checked against the paper.

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
    """True at the k largest values; of equal values the earlier is selected."""
    x = gathered(x)
    order = jnp.argsort(-x.reshape(-1), stable=True)
    rank = jnp.zeros(x.size, jnp.int32).at[order].set(jnp.arange(x.size, dtype=jnp.int32))
    return (rank < k).reshape(x.shape)
