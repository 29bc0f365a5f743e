"""Trust regions bounded by a divergence instead of the ratio: a token outside the region is dropped (f = −∞).

The derivative with respect to each hyper-parameter is 0, because each is a threshold or bounds a constant (`cap`).
"""

import math

import jax.numpy as jnp
from jax import Array, lax

from rljax import _segments
from rljax._checks import SHARE, ranges, require_shape
from rljax._guards import with_gradient_of
from rljax._segments import Segments
from rljax.ratio._arguments import Tokens, checked


@ranges(low=(0, math.inf), high=(0, math.inf), cap=(1, math.inf))
def total_variation_mask(
    log_ratio: Tokens,
    advantages: Tokens,
    segments: Segments,
    *,
    old_logp: Tokens,
    low: float | Array,
    high: float | Array,
    cap: float | Array = 3.0,
) -> Tokens:
    """DPPO's trust region, bounded by the total variation of the sampled token (2602.04879).

        f = −∞ if A > 0 and p − q > high, or A < 0 and p − q < −low;  otherwise sg(min(ℓ, log cap) − ℓ) + ℓ

    Maps `log_ratio`, `advantages` and `segments` to f(ℓ), all [..., T]. Raises ValueError if a bound is out of range.
    Here p = π_θ(y) and q = π_old(y); |p − q| is the total variation between the two distributions of "y or not y".
    Since p is computed as q·e^ℓ, `log_ratio` must not be pooled. `kl_mask` bounds a KL divergence.

    Args:
      old_logp: log q, [..., T], in nats.
      low: Largest decrease q − p if A < 0, as a probability; low ≥ 0.
      high: Largest increase p − q if A > 0, as a probability; high ≥ 0.
      cap: Upper bound on the weight r; a token beyond this bound keeps its gradient; cap ≥ 1.

    >>> r, q = jnp.array([1.25, 1.5, 0.5]), jnp.array([0.5, 0.5, 0.5])  # p − q = 0.125, 0.25, −0.25
    >>> ratio = total_variation_mask(
    ...     jnp.log(r), jnp.ones(3), jnp.ones(3, bool), old_logp=jnp.log(q), low=0.15, high=0.15)
    >>> print(jnp.exp(ratio))
    [1.25 0.   0.5 ]
    """
    log_ratio, advantages, log_q, low, high = _checked_all(log_ratio, advantages, segments, old_logp, low, high)
    difference = jnp.exp(log_q + log_ratio) - jnp.exp(log_q)
    leaves = ((advantages > 0) & (difference > high)) | ((advantages < 0) & (difference < -low))
    return jnp.where(jnp.isnan(log_q), jnp.nan, jnp.where(leaves, -jnp.inf, _capped(log_ratio, cap)))


@ranges(low=(0, math.inf), high=(0, math.inf), cap=(1, math.inf))
def kl_mask(
    log_ratio: Tokens,
    advantages: Tokens,
    segments: Segments,
    *,
    old_logp: Tokens,
    low: float | Array,
    high: float | Array,
    cap: float | Array = 3.0,
) -> Tokens:
    """DPPO's trust region, bounded by the KL divergence of the sampled token (2602.04879).

        D = q log(q/p) + (1 − q) log((1 − q + 1e-8)/(1 − p + 1e-8))
        f = −∞ if A > 0, p > q and D > high, or A < 0, p < q and D > low;
        otherwise sg(min(ℓ, log cap) − ℓ) + ℓ

    Maps `log_ratio`, `advantages` and `segments` to f(ℓ), all [..., T]. Raises ValueError if a bound is out of range.
    Here p = π_θ(y) = q·e^ℓ and q = π_old(y), so `log_ratio` must not be pooled. `total_variation_mask` bounds |p − q|.

    Args:
      old_logp: log q, [..., T], in nats.
      low: Largest D if A < 0 and p < q, in nats; low ≥ 0.
      high: Largest D if A > 0 and p > q, in nats; high ≥ 0.
      cap: Upper bound on the weight r; a token beyond this bound keeps its gradient; cap ≥ 1.

    >>> r, q = jnp.array([1.25, 1.5, 0.5]), jnp.array([0.5, 0.5, 0.5])  # D = 0.032, 0.144, 0.144
    >>> ratio = kl_mask(jnp.log(r), jnp.ones(3), jnp.ones(3, bool), old_logp=jnp.log(q), low=0.05, high=0.05)
    >>> print(jnp.exp(ratio))
    [1.25 0.   0.5 ]
    """
    log_ratio, advantages, log_q, low, high = _checked_all(log_ratio, advantages, segments, old_logp, low, high)
    other_q, other_p = (jnp.maximum(-jnp.expm1(log_pi), 0) + 1e-8 for log_pi in (log_q, log_q + log_ratio))
    divergence = -jnp.exp(log_q) * log_ratio + (other_q - 1e-8) * jnp.log(other_q / other_p)
    up, down = (advantages > 0) & (log_ratio > 0), (advantages < 0) & (log_ratio < 0)
    leaves = (up & (divergence > high)) | (down & (divergence > low))
    return jnp.where(jnp.isnan(log_q), jnp.nan, jnp.where(leaves, -jnp.inf, _capped(log_ratio, cap)))


@ranges(limit=(0, math.inf), slack=(0, math.inf), least=SHARE)
def cumulative_divergence_mask(
    log_ratio: Tokens,
    advantages: Tokens,
    segments: Segments,
    *,
    divergence: Tokens,
    limit: float | Array,
    slack: float | Array,
    least: float | Array = 0.8,
) -> Tokens:
    """CPPO's trust region, a budget of divergence that a sequence spends token by token (2606.10968).

        f = ℓ if A(r − 1) ≤ 0, or w_t D_t ≤ limit and S_t ≤ limit + slack · W_{t−1};  otherwise −∞
        w_t = 1 − (1 − least)(t − 1)/(n − 1),    S_t = Σ_{j≤t} w_j D_j,    W_t = Σ_{j≤t} w_j

    Maps `log_ratio`, `advantages` and `segments` to f(ℓ), all [..., T]. Raises ValueError if a bound is out of range.
    n, the sequence's own length, is our reading of the paper's T. `kl_mask` bounds each token separately.

    Args:
      divergence: D ≥ 0, [..., T]; in the paper the total variation over the old policy's top 20 tokens and the rest.
      limit: Budget of a token (δ in the paper), in the unit of `divergence`; limit ≥ 0.
      slack: Growth of the sequence's budget per unit of weight, in the unit of `divergence`; slack ≥ 0.
      least: Weight w of a sequence's last token, in [0, 1].

    >>> cumulative_divergence_mask(  # S = 0.125, 0.25, 0.375 against 0.1875, 0.25, 0.3125
    ...     jnp.ones(3), jnp.ones(3), jnp.ones(3, bool),
    ...     divergence=jnp.full(3, 0.125), limit=0.1875, slack=0.0625, least=1.0).tolist()
    [1.0, 1.0, -inf]
    """
    log_ratio, advantages, segments = checked(log_ratio, advantages, segments)
    require_shape(segments.shape, "segments", divergence=divergence)
    divergence = lax.stop_gradient(jnp.asarray(divergence).astype(log_ratio.dtype))
    divergence = jnp.where(_segments.trained(segments), divergence, 0.0)
    t = _segments.ordinal(segments).astype(log_ratio.dtype)
    n = _segments.total(jnp.ones_like(log_ratio), segments)
    limit, slack, least = (jnp.asarray(x, log_ratio.dtype) for x in (limit, slack, least))
    w = jnp.where(_segments.trained(segments), 1 - (1 - least) * (t - 1) / jnp.maximum(n - 1, 1), 0.0)
    spent = _segments.cumulative(w * divergence, segments)
    before = (t - 1) - (1 - least) * (t - 1) * (t - 2) / (
        2 * jnp.maximum(n - 1, 1)
    )  # W_{t−1}: w is an arithmetic sequence
    within = (w * divergence <= limit) & (spent <= limit + slack * before)
    kept = jnp.where((advantages * log_ratio <= 0) | within, log_ratio, -jnp.inf)
    return jnp.where(jnp.isnan(log_ratio) | jnp.isnan(divergence), jnp.nan, kept)


def _checked_all(log_ratio, advantages, segments, old_logp, low, high) -> tuple[Array, ...]:
    """ℓ, A, log q (0 at untrained tokens), low and high, in the dtype of sums."""
    log_ratio, advantages, segments = checked(log_ratio, advantages, segments)
    require_shape(segments.shape, "segments", old_logp=old_logp)
    log_q = jnp.where(_segments.trained(segments), lax.stop_gradient(old_logp).astype(log_ratio.dtype), 0.0)
    return log_ratio, advantages, log_q, *(jnp.asarray(bound, log_ratio.dtype) for bound in (low, high))


def _capped(log_ratio: Array, cap) -> Array:
    """sg(min(ℓ, log cap) − ℓ) + ℓ."""
    bound = jnp.log(jnp.asarray(cap, log_ratio.dtype))
    return with_gradient_of(lax.stop_gradient(jnp.minimum(log_ratio, bound)), log_ratio)
