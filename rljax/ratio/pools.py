"""Pools: the ratio of a token computed from the ratios of its sequence."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from rljax import _segments
from rljax._checks import ranges
from rljax._segments import Segments
from rljax.ratio._arguments import Tokens, checked


def token(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """The token's own ratio, f(ℓ) = ℓ (PPO, 1707.06347; GRPO, 2402.03300).

    Maps `log_ratio` (nats), `advantages` and `segments` to f(ℓ), all [..., T]. `sequence_mean` pools the sequence.

    >>> token(jnp.array([0.5, -0.25]), jnp.ones(2), jnp.ones(2, bool)).tolist()
    [0.5, -0.25]
    """
    return checked(log_ratio, advantages, segments)[0]


def sequence_mean(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """GSPO's sequence ratio, normalized by length: the mean of ℓ on every token (2507.18071).

        f(ℓ) = (1/n) Σ_j m_j ℓ_j

    Maps `log_ratio` (nats), `advantages` and `segments` to f(ℓ), all [..., T]. `sequence_sum` does not divide by n. The
    gradient of `policy_loss` spreads Σ_t w_t A_t equally over the sequence; if A varies in it, use `local_gradient`.

    >>> ℓ, mask = jnp.array([0.5, -0.25, 0.0, 1.25]), jnp.array([True, True, False, True])
    >>> sequence_mean(ℓ, jnp.ones(4), mask).tolist()
    [0.5, 0.5, 0.0, 0.5]
    """
    log_ratio, _, segments = checked(log_ratio, advantages, segments)
    return _on_tokens(_segments.mean(log_ratio, segments), segments)


def sequence_sum(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """The exact ratio of the whole sequence: the sum of ℓ on every token, for use under `local_gradient`.

        f(ℓ) = Σ_j m_j ℓ_j

    Maps `log_ratio` (nats), `advantages` and `segments` to f(ℓ), all [..., T]. Without `local_gradient`, each of the n
    tokens contributes the gradient of all n. `sequence_mean` divides by n.

    >>> ℓ, mask = jnp.array([0.5, -0.25, 0.0, 1.25]), jnp.array([True, True, False, True])
    >>> sequence_sum(ℓ, jnp.ones(4), mask).tolist()
    [1.5, 1.5, 0.0, 1.5]
    """
    log_ratio, _, segments = checked(log_ratio, advantages, segments)
    return _on_tokens(_segments.total(log_ratio, segments), segments)


def cumulative(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """CTPO's ratio of the prefix up to and including the token, for use under `local_gradient` (2605.07331).

        f(ℓ)_t = Σ_{j≤t} m_j ℓ_j

    Maps `log_ratio` (nats), `advantages` and `segments` to f(ℓ), all [..., T]. Without `local_gradient`, the advantage
    of token t is also applied to every earlier token. `prefix_mean` divides by t.

    >>> ℓ, mask = jnp.array([0.5, -0.25, 0.0, 1.25]), jnp.array([True, True, False, True])
    >>> cumulative(ℓ, jnp.ones(4), mask).tolist()
    [0.5, 0.25, 0.0, 1.5]
    """
    log_ratio, _, segments = checked(log_ratio, advantages, segments)
    return _segments.cumulative(log_ratio, segments)


def prefix_mean(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """Mean of ℓ over the prefix up to and including the token, for use under `local_gradient` (2605.07331).

        f(ℓ)_t = (1/t) Σ_{j≤t} m_j ℓ_j

    Maps `log_ratio` (nats), `advantages` and `segments` to f(ℓ), all [..., T]. It is a variant in CTPO's code, clipped
    by `position_clip` with power = −0.5. `cumulative` does not divide by t.

    >>> ℓ, mask = jnp.array([0.5, -0.25, 0.0, 1.25]), jnp.array([True, True, False, True])
    >>> prefix_mean(ℓ, jnp.ones(4), mask).tolist()
    [0.5, 0.125, 0.0, 0.5]
    """
    log_ratio, _, segments = checked(log_ratio, advantages, segments)
    positions = jnp.maximum(_segments.ordinal(segments).astype(log_ratio.dtype), 1.0)
    return _segments.cumulative(log_ratio, segments) / positions


def prefix_min(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """MinPRO's ratio: the token's ratio times the smallest ratio before the token (2601.22718).

        f(ℓ)_t = sg[min_{j<t} ℓ_j] + ℓ_t

    Maps `log_ratio` (nats), `advantages` and `segments` to f(ℓ), all [..., T]. The minimum is 0 at the first token and
    may exceed 0 later. `cumulative` adds all earlier ℓ. From notes on the paper, not checked against it.

    >>> ℓ, mask = jnp.array([0.5, -0.25, 0.0, 1.25]), jnp.array([True, True, False, True])
    >>> prefix_min(ℓ, jnp.ones(4), mask).tolist()
    [0.5, 0.25, 0.0, 1.0]
    """
    log_ratio, _, segments = checked(log_ratio, advantages, segments)
    return lax.stop_gradient(_segments.minimum_before(log_ratio, segments)) + log_ratio


@ranges(p=(-1e30, 1e30))
def power_mean(log_ratio: Tokens, advantages: Tokens, segments: Segments, *, p: float | Array) -> Tokens:
    """HölderPO's ratio: the power mean of the sequence's ratios, on every token (2605.12058).

        f(ℓ) = (1/p) log( (1/n) Σ_j m_j e^{pℓ_j} );    at p = 0 the mean of ℓ, as in `sequence_mean`

    Maps `log_ratio`, `advantages` and `segments` to f(ℓ), all [..., T]. Raises ValueError if p is out of range. The
    gradient weights token t by r_t^p / Σ_j r_j^p. By default the paper applies `clip` afterwards. With `clip` first and
    A constant per sequence, p = 1 is GRPO and p = 0 GMPO. Accurate for large |pℓ| and near p = 0 (tests/ratio_test.py).

    Args:
      p: Exponent, a number in [-1e30, 1e30); may be traced (a schedule).

    >>> ℓ, mask = jnp.log(jnp.array([1.0, 3.0])), jnp.array([True, True])
    >>> print(*(jnp.exp(power_mean(ℓ, jnp.ones(2), mask, p=p)) for p in (1.0, -1.0)))
    [2. 2.] [1.5 1.5]
    """
    log_ratio, _, segments = checked(log_ratio, advantages, segments)
    p = jnp.asarray(p, log_ratio.dtype)
    center = lax.stop_gradient(_segments.mean(log_ratio, segments))  # any constant is correct
    deviation = jnp.where(_segments.trained(segments), log_ratio - center, 0.0)
    near = _segments.maximum(jnp.abs(lax.stop_gradient(p * deviation)), segments) <= 1
    mean = _segments.mean(_exponential(jnp.where(near, deviation, 0.0), p), segments)
    close, far = center + _logarithm(mean, p), _power_mean_far(log_ratio, near, p, segments)
    return _on_tokens(jnp.where(near, close, far), segments)


@jax.custom_jvp
def _exponential(d: Array, p: Array) -> Array:
    """(e^{pd} − 1)/p if |pd| ≤ 1, d at p = 0. The derivative with respect to d is one product, so ∞·0 cannot occur."""
    return d * _series(p * d, lambda k: 1 / math.factorial(k + 1))


@_exponential.defjvp
def _(primals, tangents):
    (d, p), (d_dot, p_dot) = primals, tangents
    by_p = d * d * _series(p * d, lambda k: (k + 1) / math.factorial(k + 2))  # ((x − 1) e^x + 1)/x² at x = pd
    return _exponential(d, p), jnp.exp(p * d) * d_dot + by_p * p_dot


@jax.custom_jvp
def _logarithm(m: Array, p: Array) -> Array:
    """log(1 + pm)/p, m at p = 0: the inverse of `_exponential`."""
    u = p * m
    return m * jnp.where(u == 0, 1.0, jnp.log1p(u) / jnp.where(u == 0, 1.0, u))


@_logarithm.defjvp
def _(primals, tangents):
    (m, p), (m_dot, p_dot) = primals, tangents
    u = p * m
    small = jnp.abs(u) < 0.1
    v = jnp.where(small, 1.0, u)
    closed = (v / (1 + v) - jnp.log1p(v)) / (v * v)
    by_p = (
        m * m * jnp.where(small, _series(jnp.where(small, u, 0.0), lambda k: -((-1) ** k) * (k + 1) / (k + 2)), closed)
    )
    return _logarithm(m, p), m_dot / (1 + u) + by_p * p_dot


def _series(x: Array, coefficient: Callable[[int], float]) -> Array:
    """Σ_k c_k x^k to 18 terms, which reaches the precision of float64 for the |x| used here."""
    total = jnp.zeros_like(x)
    for k in reversed(range(18)):
        total = total * x + coefficient(k)
    return total


def _power_mean_far(log_ratio: Array, near: Array, p: Array, segments: Segments) -> Array:
    """The power mean relative to the largest r^p, for p not near 0."""
    p, still = jnp.where(near, 1.0, p), lax.stop_gradient(log_ratio)
    sign = jnp.where(p < 0, -1.0, 1.0).astype(p.dtype)
    greatest = sign * _segments.maximum(sign * still, segments)  # the ℓ of the largest r^p
    below = jnp.where(_segments.trained(segments) & ~near, log_ratio - greatest, 0.0)  # greatest is −∞ if n = 0
    exponent = p * below
    vanishes = jnp.exp(lax.stop_gradient(exponent)) == 0  # drop these terms, whose gradients would be 0·∞
    power = jnp.where(vanishes, 0.0, jnp.exp(exponent))
    mean = _segments.mean(power, segments)
    return greatest + jnp.log(jnp.where(near, 1.0, mean)) / p


def _on_tokens(x: Array, segments: Segments) -> Tokens:
    """The value of a sequence at each of its trained tokens, 0 elsewhere."""
    return jnp.where(_segments.trained(segments), x, 0.0)
