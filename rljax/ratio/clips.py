"""Clips and gates: bounds on a ratio. A ratio exactly at a bound is not clipped, so ℓ = 0 keeps its gradient."""

import math

import jax.numpy as jnp
from jax import Array

from rljax import _segments
from rljax._checks import ranges
from rljax._segments import Segments
from rljax.ratio._arguments import Tokens, checked


def _one_sided(log_ratio: Array, advantages: Array, low, high, ceiling: float | Array = jnp.inf) -> Array:
    """min(ℓ, high) if A ≥ 0; min(max(ℓ, low), ceiling) if A < 0."""
    below = jnp.where(log_ratio < low, low, jnp.where(log_ratio > ceiling, ceiling, log_ratio))
    return jnp.where(advantages < 0, below, jnp.where(log_ratio > high, high, log_ratio))


@ranges(low=(0, 1), high=(0, math.inf), dual=(1, math.inf))
def clip(
    log_ratio: Tokens,
    advantages: Tokens,
    segments: Segments,
    *,
    low: float | Array,
    high: float | Array,
    dual: float | Array | None = None,
) -> Tokens:
    """PPO's clip of the ratio, which depends on the sign of the advantage (1707.06347).

        A ≥ 0: e^f = min(r, 1 + high);    A < 0: e^f = min(max(r, 1 − low), dual)

    Maps `log_ratio`, `advantages` and `segments` to f(ℓ), all [..., T]. Raises ValueError if a bound is out of range.
    Without `dual`, this is PPO's min(rA, clip(r, 1 − low, 1 + high)·A)/A. If a pool follows (`chain`), A must be
    constant in each sequence. `two_sided_clip` ignores the sign of A; `log_clip` takes bounds in nats.

    Args:
      low: Width of the region below r = 1; 0 ≤ low < 1.
      high: Width of the region above r = 1; high ≥ 0.
      dual: Upper bound on r if A < 0, at least 1 (dual clip, 1912.09729); None for no bound.

    >>> ℓ, mask = jnp.log(jnp.array([0.5, 1.0, 2.0])), jnp.ones(3, bool)
    >>> print(*(jnp.exp(clip(ℓ, jnp.full(3, A), mask, low=0.2, high=0.2)) for A in (1.0, -1.0)))
    [0.5 1.  1.2] [0.8 1.  2. ]
    """
    log_ratio, advantages, _ = checked(log_ratio, advantages, segments)
    low, high = (jnp.asarray(bound, log_ratio.dtype) for bound in (low, high))
    if dual is None:
        return _one_sided(log_ratio, advantages, jnp.log1p(-low), jnp.log1p(high))
    ceiling = jnp.log(jnp.asarray(dual, log_ratio.dtype))
    return _one_sided(log_ratio, advantages, jnp.log1p(-low), jnp.log1p(high), ceiling)


@ranges(log_low=(0, math.inf), log_high=(0, math.inf))
def log_clip(
    log_ratio: Tokens, advantages: Tokens, segments: Segments, *, log_low: float | Array, log_high: float | Array
) -> Tokens:
    """GMPO's clip of ℓ itself, to be followed by a pool (2507.20673).

        A > 0: f = min(ℓ, log_high);    A < 0: f = max(ℓ, −log_low);    A = 0: f = 0

    Maps `log_ratio`, `advantages` and `segments` to f(ℓ), all [..., T]. Raises ValueError if a bound is out of range.
    As in the paper, A must be constant in each sequence. `clip` takes bounds on r instead.

    Args:
      log_low: Width of the region below ℓ = 0, in nats; log_low ≥ 0.
      log_high: Width of the region above ℓ = 0, in nats; log_high ≥ 0.

    >>> ℓ, mask = jnp.array([-1.0, 0.25, 1.0]), jnp.ones(3, bool)
    >>> print(*(log_clip(ℓ, jnp.full(3, A), mask, log_low=0.5, log_high=0.5) for A in (1.0, -1.0)))
    [-1.    0.25  0.5 ] [-0.5   0.25  1.  ]
    """
    log_ratio, advantages, _ = checked(log_ratio, advantages, segments)
    low, high = (jnp.asarray(bound, log_ratio.dtype) for bound in (log_low, log_high))
    return jnp.where(advantages == 0, 0.0, _one_sided(log_ratio, advantages, -low, high))


@ranges(log_low=(0, math.inf), log_high=(0, math.inf), log_dual=(0, math.inf), power=(-10, 10))
def position_clip(
    log_ratio: Tokens,
    advantages: Tokens,
    segments: Segments,
    *,
    log_low: float | Array,
    log_high: float | Array,
    log_dual: float | Array | None = None,
    power: float | Array = 0.5,
) -> Tokens:
    """CTPO's clip of ℓ, with bounds that depend on the token's position t, unlike in `clip` (2605.07331).

        A ≥ 0: f = min(ℓ, log_high·t^power);    A < 0: f = min(max(ℓ, −log_low·t^power), log_dual·t^power)

    Maps `log_ratio`, `advantages` and `segments` to f(ℓ), all [..., T]. Raises ValueError if a bound is out of range.
    If tokens are independent, std ℓ ∝ t^0.5 after `cumulative` (docs/claims.md) and ∝ t^−0.5 after `prefix_mean`.

    Args:
      log_low: Width of the region below ℓ = 0 at t = 1, in nats; log_low ≥ 0.
      log_high: Width of the region above ℓ = 0 at t = 1, in nats; log_high ≥ 0.
      log_dual: Upper bound on ℓ at t = 1 if A < 0, in nats, at least 0; None for no bound.
      power: Exponent of t, in [-10, 10).

    >>> print(position_clip(jnp.full(4, 9.0), jnp.ones(4), jnp.ones(4, bool), log_low=0.5, log_high=0.5))
    [0.5   0.707 0.866 1.   ]
    """
    log_ratio, advantages, segments = checked(log_ratio, advantages, segments)
    positions = jnp.maximum(_segments.ordinal(segments).astype(log_ratio.dtype), 1.0)
    width = positions ** jnp.asarray(power, log_ratio.dtype)
    low, high = (jnp.asarray(bound, log_ratio.dtype) * width for bound in (log_low, log_high))
    ceiling = jnp.inf if log_dual is None else jnp.asarray(log_dual, log_ratio.dtype) * width
    return _one_sided(log_ratio, advantages, -low, high, ceiling)


@ranges(low=(0, 1), high=(0, math.inf))
def two_sided_clip(
    log_ratio: Tokens,
    advantages: Tokens,
    segments: Segments,
    *,
    low: float | Array | None = None,
    high: float | Array,
) -> Tokens:
    """Clip of the ratio that ignores the sign of the advantage; under `local_gradient`, CISPO's clip (2506.13585).

        e^f = min(max(r, 1 − low), 1 + high)

    Maps `log_ratio`, `advantages` and `segments` to f(ℓ), all [..., T]. Raises ValueError if a bound is out of range.
    Under `local_gradient` a clipped token keeps its gradient, scaled by the clipped ratio; without `local_gradient` its
    gradient is 0. `clip` bounds only one side of r, which depends on the sign of A.

    Args:
      low: Width of the region below r = 1, 0 ≤ low < 1; None for no lower bound.
      high: Width of the region above r = 1; high ≥ 0.

    >>> ℓ, A, mask = jnp.log(jnp.array([0.5, 1.0, 2.0])), jnp.array([1.0, 1.0, -1.0]), jnp.ones(3, bool)
    >>> print(jnp.exp(two_sided_clip(ℓ, A, mask, low=0.2, high=0.2)))
    [0.8 1.  1.2]
    """
    log_ratio, _, _ = checked(log_ratio, advantages, segments)
    upper = jnp.log1p(jnp.asarray(high, log_ratio.dtype))
    clipped = jnp.where(log_ratio > upper, upper, log_ratio)
    if low is None:
        return clipped
    lower = jnp.log1p(-jnp.asarray(low, log_ratio.dtype))
    return jnp.where(clipped < lower, lower, clipped)


@ranges(positive=(1e-30, math.inf), negative=(1e-30, math.inf))
def soft_gate(
    log_ratio: Tokens,
    advantages: Tokens,
    segments: Segments,
    *,
    positive: float | Array = 1.0,
    negative: float | Array = 1.05,
) -> Tokens:
    """SAPO's smooth gate, used instead of a clip (2511.20347).

        f(ℓ) = log( (4/τ) σ(τ(r − 1)) ),    τ = positive if A > 0, negative otherwise
        σ is the logistic function

    Maps `log_ratio`, `advantages` and `segments` to f(ℓ), all [..., T]. Raises ValueError if τ is out of range. e^f is
    2/τ and ∂e^f/∂ℓ is 1 at ℓ = 0. The derivative falls smoothly to 0 on both sides; `clip` cuts it off.

    Args:
      positive: Temperature τ of tokens with A > 0; at least 1e-30.
      negative: Temperature τ of the other tokens; at least 1e-30.

    >>> ℓ, A, mask = jnp.log(jnp.array([1.0, 1.3])), jnp.ones(2), jnp.ones(2, bool)
    >>> print(jnp.exp(soft_gate(ℓ, A, mask)))  # 4σ(0), 4σ(0.3)
    [2.    2.298]
    """
    log_ratio, advantages, _ = checked(log_ratio, advantages, segments)
    positive, negative = (jnp.asarray(t, log_ratio.dtype) for t in (positive, negative))
    temperature = jnp.where(advantages > 0, positive, negative)
    excess = jnp.expm1(jnp.where(log_ratio > 40.0, 40.0, log_ratio))  # above 40, σ is 1 and its derivative 0
    z = temperature * excess
    log_sigmoid = jnp.where(z < 0, z, 0.0) - jnp.log(1.0 + jnp.exp(jnp.where(z < 0, z, -z)))
    return jnp.where(advantages > 0, jnp.log(4.0 / positive), jnp.log(4.0 / negative)) + log_sigmoid


@ranges(k_positive=(0, math.inf), lam_positive=(0, math.inf), k_negative=(0, math.inf), lam_negative=(0, math.inf))
def gamma_gate(
    log_ratio: Tokens,
    advantages: Tokens,
    segments: Segments,
    *,
    k_positive: float | Array = 2.0,
    lam_positive: float | Array = 3.0,
    k_negative: float | Array = 3.0,
    lam_negative: float | Array = 2.0,
) -> Tokens:
    """VESPO's weight of a sequence's ratio, a gamma density scaled to 1 at r = 1 (2602.10693).

        f(ℓ) = λ + kℓ − λe^ℓ, so e^f = r^k e^{λ(1 − r)};    ℓ is first clipped to [log 1e-8, 20]

    Maps `log_ratio`, `advantages` and `segments` to f(ℓ), all [..., T]. Raises ValueError if k or λ < 0. For use after
    `sequence_sum`, under `local_gradient`. `taper` truncates at 1. From TRL's code, not checked against the paper.

    Args:
      k_positive: Exponent k if A ≥ 0; at least 0.
      lam_positive: Decay rate λ if A ≥ 0; at least 0.
      k_negative: Exponent k if A < 0; at least 0.
      lam_negative: Decay rate λ if A < 0; at least 0.

    >>> r, A = jnp.array([1.0, 2.0, 2.0]), jnp.array([1.0, 1.0, -1.0])
    >>> print(jnp.exp(gamma_gate(jnp.log(r), A, jnp.ones(3, bool))))  # 1, 2² e^{−3}, 2³ e^{−2}
    [1.     0.1991 1.0827]
    """
    log_ratio, advantages, _ = checked(log_ratio, advantages, segments)
    log_ratio = jnp.clip(log_ratio, jnp.log(1e-8).astype(log_ratio.dtype), 20.0)
    k_positive, k_negative = (jnp.asarray(k, log_ratio.dtype) for k in (k_positive, k_negative))
    lam_positive, lam_negative = (jnp.asarray(lam, log_ratio.dtype) for lam in (lam_positive, lam_negative))
    k, lam = jnp.where(advantages < 0, k_negative, k_positive), jnp.where(advantages < 0, lam_negative, lam_positive)
    return k * log_ratio - lam * jnp.expm1(log_ratio)


def taper(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """TOPR's weight: 1 if A ≥ 0, and the ratio truncated at 1 if A < 0 (2503.14286).

        A ≥ 0: f = 0;    A < 0: f = min(ℓ, 0)

    Maps `log_ratio` (nats), `advantages` and `segments` to f(ℓ), all [..., T]. For use under `local_gradient`.
    `gamma_gate` is a smooth weight. Read in ROLL's code, not checked against the paper.

    >>> r, A = jnp.array([2.0, 2.0, 0.5]), jnp.array([1.0, -1.0, -1.0])
    >>> print(jnp.exp(taper(jnp.log(r), A, jnp.ones(3, bool))))
    [1.  1.  0.5]
    """
    log_ratio, advantages, _ = checked(log_ratio, advantages, segments)
    full = (advantages >= 0) | (log_ratio > 0)
    return jnp.where(full & ~jnp.isnan(log_ratio), 0.0, log_ratio)


@ranges(limit=(0, math.inf))
def clamp(log_ratio: Tokens, advantages: Tokens, segments: Segments, *, limit: float | Array) -> Tokens:
    """Clamp of ℓ to [−limit, limit], so that exp cannot overflow.

    Maps `log_ratio`, `advantages` and `segments` to f(ℓ), all [..., T]. Raises ValueError if limit < 0. The gradient
    outside the interval is 0. Unlike `clip`, this is a numerical guard, not a trust region.

    Args:
      limit: Largest |ℓ|, in nats; limit ≥ 0.

    >>> clamp(jnp.array([-50.0, 0.5, 50.0]), jnp.ones(3), jnp.ones(3, bool), limit=20).tolist()
    [-20.0, 0.5, 20.0]
    """
    log_ratio, _, _ = checked(log_ratio, advantages, segments)
    limit = jnp.asarray(limit, log_ratio.dtype)
    return jnp.where(jnp.abs(log_ratio) > limit, jnp.sign(log_ratio) * limit, log_ratio)
