"""Ratios f: how far the policy moved, from log-ratios to log-ratios.

Each is `f(log_ratio, advantages, segments) -> log_ratio`, all `[*B, T]` with time last; `segments` is a boolean mask
(every row one sequence) or int32 ids (0 = not trained; equal non-zero ids in a row are one sequence, and zeros inside
it neither add nor reset). ℓ_t is the log-ratio of token t, m_t true where it is trained, n = Σ m_t, A_t its advantage;
position t is the ordinal among the trained tokens, 1-based. Reductions run in float32, or float64 where ℓ is float64.
What a ratio needs beyond its three arguments it names as a keyword-only parameter: hyper-parameters are bound with
`functools.partial`, the rest comes from the field of that name of the `Batch`.

All raise ValueError where shapes differ or a hyper-parameter is out of range, TypeError for float segments.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from rljax import _segments
from rljax._checks import accumulators, require_between, require_floating, require_rank, require_segments, require_shape
from rljax._segments import Segments
from rljax.objective import required_fields, requiring

__all__ = [
    "chain",
    "clamp",
    "clip",
    "cumulative",
    "local_gradient",
    "log_clip",
    "position_clip",
    "power_mean",
    "prefix_mean",
    "prefix_min",
    "sequence_mean",
    "sequence_sum",
    "soft_gate",
    "token",
    "two_sided_clip",
]

Tokens = Float[Array, "*B T"]


def chain(*ratios: Callable) -> Callable:
    """The ratios one after the other, left to right: `chain(f, g)` is g(f(ℓ)).

    Order carries meaning: pool then clip is GSPO, clip then pool is GMPO. A keyword that any of them requires is
    required of the chain and passed on to those that name it.
    """

    def chained(log_ratio: Tokens, advantages: Tokens, segments: Segments, **bound) -> Tokens:
        for ratio in ratios:
            named = {name: bound[name] for name in required_fields(ratio)}
            log_ratio = ratio(log_ratio, advantages, segments, **named)
        return log_ratio

    return requiring(frozenset().union(*map(required_fields, ratios)), chained)


def local_gradient(ratio: Callable) -> Callable:
    """The value of f with the gradient of each token's own log-probability.

        sg(f(ℓ) − ℓ) + ℓ

    Where f pools over tokens, its own gradient gives a token's advantage to other tokens: right for a sequence-level
    objective (GSPO), wrong for a cumulative ratio, or for an advantage that varies within the sequence.
    """

    def local(log_ratio: Tokens, advantages: Tokens, segments: Segments, **bound) -> Tokens:
        value = ratio(log_ratio, advantages, segments, **bound)
        log_ratio = log_ratio.astype(value.dtype)
        return lax.stop_gradient(value - log_ratio) + log_ratio

    return requiring(required_fields(ratio), local)


def _checked(log_ratio, advantages, segments) -> tuple[Array, Array, Array]:
    """The three arguments, floating ones in the dtype of sums."""
    segments = require_segments(segments)
    if segments.ndim == 0:
        require_rank("segments", segments, "*B T")
    require_shape(segments.shape, "segments", log_ratio=log_ratio, advantages=advantages)
    require_floating(log_ratio=log_ratio)
    log_ratio, advantages = accumulators(log_ratio=log_ratio, advantages=advantages)
    return log_ratio, advantages, segments


# Pools: the ratio of a token from the tokens of its sequence.


def token(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """Each token's own ratio, ℓ_t (PPO 1707.06347, GRPO 2402.03300)."""
    return _checked(log_ratio, advantages, segments)[0]


def sequence_mean(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """The length-normalised sequence ratio, (1/n) Σ_j m_j ℓ_j on every token (GSPO, 2507.18071).

    Spreads Σ_t w_t A_t over the whole sequence: with advantages that vary within it use `local_gradient`.
    """
    log_ratio, _, segments = _checked(log_ratio, advantages, segments)
    return _segments.mean(log_ratio, segments)


def sequence_sum(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """The exact trajectory ratio, Σ_j m_j ℓ_j on every token. For use under `local_gradient`.

    Bare, each of n tokens carries the gradient of all n.
    """
    log_ratio, _, segments = _checked(log_ratio, advantages, segments)
    return _segments.total(log_ratio, segments)


def cumulative(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """The ratio of the prefix up to and including the token, Σ_{j≤t} m_j ℓ_j (CTPO, 2605.07331).

    For use under `local_gradient`: bare, it sends token t's advantage to every earlier token.
    """
    log_ratio, _, segments = _checked(log_ratio, advantages, segments)
    return _segments.cumulative(log_ratio, segments)


def prefix_mean(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """The geometric mean over the prefix, (1/t) Σ_{j≤t} m_j ℓ_j (CTPO's variant, clipped with power −0.5).

    For use under `local_gradient`, as `cumulative`.
    """
    log_ratio, _, segments = _checked(log_ratio, advantages, segments)
    positions = jnp.maximum(_segments.ordinal(segments), 1).astype(log_ratio.dtype)
    return _segments.cumulative(log_ratio, segments) / positions


def prefix_min(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """The token's ratio times the least ratio before it, sg[min_{j<t} ℓ_j] + ℓ_t (MinPRO, 2601.22718).

    0 in place of the minimum at the first token; the minimum is not capped at 0. Not verified from the source: from
    third-party notes on the paper.
    """
    log_ratio, _, segments = _checked(log_ratio, advantages, segments)
    return lax.stop_gradient(_segments.minimum_before(log_ratio, segments)) + log_ratio


def power_mean(log_ratio: Tokens, advantages: Tokens, segments: Segments, *, p: float | Array) -> Tokens:
    """The power mean of the sequence's ratios, on every token (HölderPO, 2605.12058).

        (1/p) log (1/n) Σ_j m_j e^{pℓ_j};    p → 0: the mean of ℓ, GSPO's ratio

    Its gradient weighs the tokens by r_t^p / Σ r^p. p is any real number, and may be traced (a schedule). Before
    `clip` it is the paper's default; after `clip` p = 1 is GRPO and p = 0 GMPO (for advantages constant in a
    sequence). Stable for large |pℓ|, and accurate as p → 0.
    """
    log_ratio, _, segments = _checked(log_ratio, advantages, segments)
    p = jnp.asarray(p, log_ratio.dtype)
    center = _segments.mean(log_ratio, segments)
    exponent = jnp.where(_segments.trained(segments), p * (log_ratio - center), 0.0)
    near = _segments.maximum(jnp.abs(lax.stop_gradient(exponent)), segments) <= 1
    close, far = jnp.where(near, exponent, 0.0), jnp.where(near, 0.0, exponent)
    top = _segments.maximum(lax.stop_gradient(far), segments)
    log_mean = jnp.where(
        near,
        jnp.log1p(_segments.mean(jnp.expm1(close), segments)),
        top + jnp.log(jnp.where(near, 1.0, _segments.mean(jnp.exp(far - top), segments))),
    )
    return center + jnp.where(p == 0, 0.0, log_mean / jnp.where(p == 0, 1.0, p))


# Clips and gates: how far a ratio may carry. Tests are strict, so that ℓ = 0 always passes its gradient.


def _one_sided(log_ratio: Array, advantages: Array, low, high, ceiling: float | Array = jnp.inf) -> Array:
    """min(ℓ, high) where A ≥ 0; min(max(ℓ, low), ceiling) where A < 0."""
    below = jnp.where(log_ratio < low, low, jnp.where(log_ratio > ceiling, ceiling, log_ratio))
    return jnp.where(advantages < 0, below, jnp.where(log_ratio > high, high, log_ratio))


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
    """
    require_between("low", low, 0, 1)
    require_between("high", high, 0)
    log_ratio, advantages, _ = _checked(log_ratio, advantages, segments)
    low, high = (jnp.asarray(bound, log_ratio.dtype) for bound in (low, high))
    if dual is None:
        return _one_sided(log_ratio, advantages, jnp.log1p(-low), jnp.log1p(high))
    require_between("dual", dual, 1)
    ceiling = jnp.log(jnp.asarray(dual, log_ratio.dtype))
    return _one_sided(log_ratio, advantages, jnp.log1p(-low), jnp.log1p(high), ceiling)


def log_clip(
    log_ratio: Tokens, advantages: Tokens, segments: Segments, *, low: float | Array, high: float | Array
) -> Tokens:
    """GMPO's clip, before pooling (2507.20673); bounds are on ℓ itself.

        s·min(sℓ, s·clip(ℓ, −low, high)),    s = sign A

    Defined by its paper for A constant in a sequence only. low ≥ 0, high ≥ 0; 0 where A = 0.
    """
    require_between("low", low, 0)
    require_between("high", high, 0)
    log_ratio, advantages, _ = _checked(log_ratio, advantages, segments)
    low, high = (jnp.asarray(bound, log_ratio.dtype) for bound in (low, high))
    return jnp.where(advantages == 0, 0.0, _one_sided(log_ratio, advantages, -low, high))


def position_clip(
    log_ratio: Tokens,
    advantages: Tokens,
    segments: Segments,
    *,
    low: float | Array,
    high: float | Array,
    dual: float | Array | None = None,
    power: float = 0.5,
) -> Tokens:
    """CTPO's clip, whose bounds on ℓ widen with the position t (2605.07331).

        A ≥ 0: min(ℓ, high·t^power);    A < 0: min(max(ℓ, −low·t^power), dual·t^power)

    A cumulative ratio's standard deviation grows as √t, hence power = 0.5; a prefix mean's falls, −0.5. `dual` is a
    coefficient in log space, unlike `clip`'s. low, high, dual ≥ 0.
    """
    for name, value in (("low", low), ("high", high), ("dual", dual)):
        if value is not None:
            require_between(name, value, 0)
    log_ratio, advantages, segments = _checked(log_ratio, advantages, segments)
    positions = jnp.maximum(_segments.ordinal(segments), 1).astype(log_ratio.dtype)
    width = positions ** jnp.asarray(power, log_ratio.dtype)
    low, high = (jnp.asarray(bound, log_ratio.dtype) * width for bound in (low, high))
    ceiling = jnp.inf if dual is None else jnp.asarray(dual, log_ratio.dtype) * width
    return _one_sided(log_ratio, advantages, -low, high, ceiling)


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
    """
    require_between("high", high, 0)
    log_ratio, _, _ = _checked(log_ratio, advantages, segments)
    upper = jnp.log1p(jnp.asarray(high, log_ratio.dtype))
    clipped = jnp.where(log_ratio > upper, upper, log_ratio)
    if low is None:
        return clipped
    require_between("low", low, 0, 1)
    lower = jnp.log1p(-jnp.asarray(low, log_ratio.dtype))
    return jnp.where(clipped < lower, lower, clipped)


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
    """
    for name, value in (("positive", positive), ("negative", negative)):
        require_between(name, value, 1e-30)
    log_ratio, advantages, _ = _checked(log_ratio, advantages, segments)
    positive, negative = (jnp.asarray(t, log_ratio.dtype) for t in (positive, negative))
    temperature = jnp.where(advantages > 0, positive, negative)
    excess = jnp.expm1(jnp.minimum(log_ratio, 40.0))  # from there on σ is 1 and its derivative 0 to the last bit
    gate = -jnp.logaddexp(jnp.zeros_like(excess), -temperature * excess)
    return jnp.log(4.0 / temperature) + gate


def clamp(log_ratio: Tokens, advantages: Tokens, segments: Segments, *, limit: float | Array) -> Tokens:
    """A visible guard: ℓ held within ±limit, so that exp cannot overflow. Beyond it the gradient is 0. limit ≥ 0."""
    require_between("limit", limit, 0)
    log_ratio, _, _ = _checked(log_ratio, advantages, segments)
    limit = jnp.asarray(limit, log_ratio.dtype)
    return jnp.where(jnp.abs(log_ratio) > limit, jnp.sign(log_ratio) * limit, log_ratio)
