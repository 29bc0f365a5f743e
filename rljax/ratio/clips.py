"""Clips and gates: how far a ratio may carry. Tests are strict, so that ℓ = 0 always passes its gradient."""

import math

import jax.numpy as jnp
from jax import Array

from rljax import _segments
from rljax._checks import ranges
from rljax._segments import Segments
from rljax.ratio._arguments import Tokens, checked


def _one_sided(log_ratio: Array, advantages: Array, low, high, ceiling: float | Array = jnp.inf) -> Array:
    """min(ℓ, high) where A ≥ 0; min(max(ℓ, low), ceiling) where A < 0."""
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
    """PPO's clip, given the sign of A (1707.06347); bounds are on the ratio r, 1 − low and 1 + high.

        A ≥ 0: min(r, 1 + high);    A < 0: min(max(r, 1 − low), dual)

    which is min(rA, clip(r)A) divided by A. Without `dual` a negative advantage has no ceiling; `dual` > 1 is the
    dual clip (1912.09729). low in [0, 1), high ≥ 0. Before a pool it is defined for A constant in a sequence only.

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
    """GMPO's clip, before pooling (2507.20673); bounds are on ℓ itself.

        s·min(sℓ, s·clip(ℓ, −log_low, log_high)),    s = sign A

    Defined by its paper for A constant in a sequence only. log_low, log_high ≥ 0, in nats; 0 where A = 0.

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
    """CTPO's clip, whose bounds on ℓ widen with the position t (2605.07331).

        A ≥ 0: min(ℓ, log_high·t^power);    A < 0: min(max(ℓ, −log_low·t^power), log_dual·t^power)

    The standard deviation of a cumulative ratio grows as √t, hence power = 0.5; that of a prefix mean falls as 1/√t,
    −0.5. log_low, log_high, log_dual ≥ 0, in nats at t = 1.

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
    """clip(r, 1 − low, 1 + high) whatever the sign of A (CISPO, 2506.13585, under `local_gradient`).

    Under `local_gradient` a clipped token keeps its gradient, with the clipped weight; bare, it loses it. No lower
    bound where low is None. low in [0, 1), high ≥ 0.

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
    """A smooth gate in place of a clip (SAPO, 2511.20347).

        log( (4/τ) σ(τ(r − 1)) ),    τ = positive where A > 0, negative elsewhere

    Its value at r = 1 is 2/τ, its derivative by r there 1, falling to 0 on both sides. τ > 0.

    >>> ℓ, A, mask = jnp.log(jnp.array([1.0, 1.3])), jnp.ones(2), jnp.ones(2, bool)
    >>> print(jnp.exp(soft_gate(ℓ, A, mask)))  # 4σ(0), 4σ(0.3)
    [2.    2.298]
    """
    log_ratio, advantages, _ = checked(log_ratio, advantages, segments)
    positive, negative = (jnp.asarray(t, log_ratio.dtype) for t in (positive, negative))
    temperature = jnp.where(advantages > 0, positive, negative)
    excess = jnp.expm1(jnp.where(log_ratio > 40.0, 40.0, log_ratio))  # from there on σ is 1, its derivative 0
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
    """The weight r^k e^{λ(1 − r)}, the shape of a gamma density with value 1 at r = 1 (VESPO, 2602.10693).

        λ + kℓ − λe^ℓ,    ℓ within log 1e-8, 20;    (k, λ) = positive where A ≥ 0, negative elsewhere

    For use under `local_gradient`. k, λ ≥ 0. Not verified from the paper: read in TRL's code.

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
    """Full weight where A ≥ 0, importance sampling truncated at 1 where A < 0 (TOPR, 2503.14286).

        A ≥ 0: 0;    A < 0: min(ℓ, 0)

    For use under `local_gradient`. Not verified from the paper: read in ROLL's code.

    >>> r, A = jnp.array([2.0, 2.0, 0.5]), jnp.array([1.0, -1.0, -1.0])
    >>> print(jnp.exp(taper(jnp.log(r), A, jnp.ones(3, bool))))
    [1.  1.  0.5]
    """
    log_ratio, advantages, _ = checked(log_ratio, advantages, segments)
    full = (advantages >= 0) | (log_ratio > 0)
    return jnp.where(full & ~jnp.isnan(log_ratio), 0.0, log_ratio)


@ranges(limit=(0, math.inf))
def clamp(log_ratio: Tokens, advantages: Tokens, segments: Segments, *, limit: float | Array) -> Tokens:
    """A visible guard: ℓ held within ±limit, so that exp cannot overflow. Beyond it the gradient is 0. limit ≥ 0.

    >>> clamp(jnp.array([-50.0, 0.5, 50.0]), jnp.ones(3), jnp.ones(3, bool), limit=20).tolist()
    [-20.0, 0.5, 20.0]
    """
    log_ratio, _, _ = checked(log_ratio, advantages, segments)
    limit = jnp.asarray(limit, log_ratio.dtype)
    return jnp.where(jnp.abs(log_ratio) > limit, jnp.sign(log_ratio) * limit, log_ratio)
