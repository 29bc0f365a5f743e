"""Pools: the ratio of a token from the tokens of its sequence."""

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
    """Each token's own ratio, ℓ_t (PPO 1707.06347, GRPO 2402.03300).

    >>> token(jnp.array([0.5, -0.25]), jnp.ones(2), jnp.ones(2, bool)).tolist()
    [0.5, -0.25]
    """
    return checked(log_ratio, advantages, segments)[0]


def sequence_mean(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """The length-normalized sequence ratio, (1/n) Σ_j m_j ℓ_j on every token (GSPO, 2507.18071).

    Spreads Σ_t w_t A_t over the whole sequence: with advantages that vary within it use `local_gradient`.

    >>> ℓ, mask = jnp.array([0.5, -0.25, 0.0, 1.25]), jnp.array([True, True, False, True])
    >>> sequence_mean(ℓ, jnp.ones(4), mask).tolist()
    [0.5, 0.5, 0.0, 0.5]
    """
    log_ratio, _, segments = checked(log_ratio, advantages, segments)
    return _on_tokens(_segments.mean(log_ratio, segments), segments)


def sequence_sum(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """The exact trajectory ratio, Σ_j m_j ℓ_j on every token. For use under `local_gradient`.

    Bare, each of n tokens carries the gradient of all n.

    >>> ℓ, mask = jnp.array([0.5, -0.25, 0.0, 1.25]), jnp.array([True, True, False, True])
    >>> sequence_sum(ℓ, jnp.ones(4), mask).tolist()
    [1.5, 1.5, 0.0, 1.5]
    """
    log_ratio, _, segments = checked(log_ratio, advantages, segments)
    return _on_tokens(_segments.total(log_ratio, segments), segments)


def cumulative(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """The ratio of the prefix up to and including the token, Σ_{j≤t} m_j ℓ_j (CTPO, 2605.07331).

    For use under `local_gradient`: bare, it sends token t's advantage to every earlier token.

    >>> ℓ, mask = jnp.array([0.5, -0.25, 0.0, 1.25]), jnp.array([True, True, False, True])
    >>> cumulative(ℓ, jnp.ones(4), mask).tolist()
    [0.5, 0.25, 0.0, 1.5]
    """
    log_ratio, _, segments = checked(log_ratio, advantages, segments)
    return _segments.cumulative(log_ratio, segments)


def prefix_mean(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """The geometric mean over the prefix, (1/t) Σ_{j≤t} m_j ℓ_j (CTPO's variant, clipped with power −0.5).

    For use under `local_gradient`, as `cumulative`.

    >>> ℓ, mask = jnp.array([0.5, -0.25, 0.0, 1.25]), jnp.array([True, True, False, True])
    >>> prefix_mean(ℓ, jnp.ones(4), mask).tolist()
    [0.5, 0.125, 0.0, 0.5]
    """
    log_ratio, _, segments = checked(log_ratio, advantages, segments)
    positions = jnp.maximum(_segments.ordinal(segments).astype(log_ratio.dtype), 1.0)
    return _segments.cumulative(log_ratio, segments) / positions


def prefix_min(log_ratio: Tokens, advantages: Tokens, segments: Segments) -> Tokens:
    """The token's ratio times the least ratio before it, sg[min_{j<t} ℓ_j] + ℓ_t (MinPRO, 2601.22718).

    0 in place of the minimum at the first token; the minimum is not capped at 0. Not verified from the source: from
    third-party notes on the paper.

    >>> ℓ, mask = jnp.array([0.5, -0.25, 0.0, 1.25]), jnp.array([True, True, False, True])
    >>> prefix_min(ℓ, jnp.ones(4), mask).tolist()
    [0.5, 0.25, 0.0, 1.0]
    """
    log_ratio, _, segments = checked(log_ratio, advantages, segments)
    return lax.stop_gradient(_segments.minimum_before(log_ratio, segments)) + log_ratio


@ranges(p=(-1e30, 1e30))
def power_mean(log_ratio: Tokens, advantages: Tokens, segments: Segments, *, p: float | Array) -> Tokens:
    """The power mean of the sequence's ratios, on every token (HölderPO, 2605.12058).

        (1/p) log (1/n) Σ_j m_j e^{pℓ_j};    p → 0: the mean of ℓ, GSPO's ratio

    Its gradient weighs the tokens by r_t^p / Σ r^p. p is any real number, and may be traced (a schedule). Before
    `clip` it is the paper's default; after `clip` p = 1 is GRPO and p = 0 GMPO (for advantages constant in a
    sequence). Stable for large |pℓ|, and accurate as p → 0, as is its derivative by p (½ the variance of ℓ at 0).

    >>> ℓ, mask = jnp.log(jnp.array([1.0, 3.0])), jnp.array([True, True])
    >>> print(*(jnp.exp(power_mean(ℓ, jnp.ones(2), mask, p=p)) for p in (1.0, -1.0)))
    [2. 2.] [1.5 1.5]
    """
    log_ratio, _, segments = checked(log_ratio, advantages, segments)
    p = jnp.asarray(p, log_ratio.dtype)
    center = lax.stop_gradient(_segments.mean(log_ratio, segments))  # any constant would do
    deviation = jnp.where(_segments.trained(segments), log_ratio - center, 0.0)
    near = _segments.maximum(jnp.abs(lax.stop_gradient(p * deviation)), segments) <= 1
    mean = _segments.mean(_exponential(jnp.where(near, deviation, 0.0), p), segments)
    close, far = center + _logarithm(mean, p), _power_mean_far(log_ratio, near, p, segments)
    return _on_tokens(jnp.where(near, close, far), segments)


@jax.custom_jvp
def _exponential(d: Array, p: Array) -> Array:
    """(e^{pd} − 1)/p for |pd| ≤ 1, d at p = 0: smooth in p. Its derivative by d is one product, so ∞·0 cannot arise."""
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
    """Σ_k c_k x^k to 18 terms, which is float64's precision where it is used."""
    total = jnp.zeros_like(x)
    for k in reversed(range(18)):
        total = total * x + coefficient(k)
    return total


def _power_mean_far(log_ratio: Array, near: Array, p: Array, segments: Segments) -> Array:
    """The power mean by the greatest of the r^p, where p is not near 0."""
    p, still = jnp.where(near, 1.0, p), lax.stop_gradient(log_ratio)
    sign = jnp.where(p < 0, -1.0, 1.0).astype(p.dtype)
    greatest = sign * _segments.maximum(sign * still, segments)  # of the r^p
    below = jnp.where(_segments.trained(segments) & ~near, log_ratio - greatest, 0.0)  # greatest is −∞ over nothing
    exponent = p * below
    vanishes = jnp.exp(lax.stop_gradient(exponent)) == 0  # as its gradient does, were the whole infinite: no 0·∞
    power = jnp.where(vanishes, 0.0, jnp.exp(exponent))
    mean = _segments.mean(power, segments)
    return greatest + jnp.log(jnp.where(near, 1.0, mean)) / p


def _on_tokens(x: Array, segments: Segments) -> Tokens:
    """A sequence's value on each of its trained tokens, 0 elsewhere."""
    return jnp.where(_segments.trained(segments), x, 0.0)
