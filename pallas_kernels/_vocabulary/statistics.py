"""The mathematics that all implementations of token_stats share: from sums over columns to statistics, and back.

Forward, a pass over the columns keeps for each row the running maximum m (online softmax), with the target y apart
from the rest R = {v ≠ y}, so that nothing cancels where π(y) → 1:

    rest = Σ_R e^(x−m),  squares = Σ_R e^(2(x−m)),  moment = Σ_R (x−m) e^(x−m),  d = x_y − m,  S = rest + e^d
    logp = d − log S,   entropy = log S − (moment + d e^d)/S,   proxy = (1 − π_y)² + Σ_R π² = (rest² + squares)/S²

Backward, π_v = e^(x_v − m − log S) is computed again.  Since ∂log π_u/∂x_v = 1[u=v] − π_v and ∂π_u = π_u ∂log π_u, with
Q = Σπ² and H the entropy,

    ∂logp/∂x_v    = 1[v=y] − π_v
    ∂entropy/∂x_v = − Σ_u (log π_u + 1) ∂π_u  = − π_v (log π_v + 1) + π_v (1 − H)  = − π_v (log π_v + H)
    ∂proxy/∂x_v   = − 2 ∂π_y + 2 Σ_u π_u ∂π_u = − 2 π_y (1[v=y] − π_v) + 2 π_v (π_v − Q)

so that for the cotangents g, k, q of the three, with a = g − 2 q π_y,

    ∂L/∂x_v = a 1[v=y] + π_v (−a − k H − 2 q Q − k log π_v + 2 q π_v).

The logits z = h·Wᵀ + b are scaled, x = βz, or capped first, x = β c tanh(z/c): then ∂x/∂z = β (1 − tanh²(z/c)).

A token with βz ≤ `BANNED`, −∞ included, is banned: its π is exactly 0.  Its x is `BANNED`, which is finite, so that no
∞ − ∞ or 0·∞ arises.  If y is banned, logp is −∞, a constant.  If all tokens are banned, every π is 0, so that the
entropy is 0 and the proxy is 1.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from pallas_kernels._vocabulary.types import ABSENT, TokenStats

BANNED = -1e30  # the logit x of a banned token or of padding, and the maximum of no columns


class Sums(NamedTuple):
    """Of the columns seen so far, [N] each: the maximum m, the target's x, and the sums of the first equations."""

    top: Array
    target: Array
    rest: Array
    squares: Array
    moment: Array


class Slope(NamedTuple):
    """β ∂L/∂x_v = at_target 1[v=y] + π_v (constant + log_pi log π_v + pi π_v), [N] each; None is a zero.

    log π_v = (x_v − top) − log_total.
    """

    top: Array
    log_total: Array
    at_target: Array
    constant: Array
    log_pi: Array | None
    pi: Array | None


def no_columns(targets, dtype) -> Sums:
    zero = jnp.zeros_like(targets, dtype)
    return Sums(zero + jnp.asarray(BANNED, dtype), *[zero] * 4)


def rescaled(sums: Sums, top) -> Sums:
    """The same sums from another maximum, at or above theirs."""
    shift = sums.top - top
    scale = jnp.exp(shift)
    moment = jnp.where(scale > 0, (sums.moment + shift * sums.rest) * scale, 0)  # never −∞·0
    return Sums(top, sums.target, sums.rest * scale, sums.squares * scale**2, moment)


def joined(one: Sums, other: Sums) -> Sums:
    """The sums of both sets of columns, which share none."""
    top = jnp.maximum(one.top, other.top)
    a, b = rescaled(one, top), rescaled(other, top)
    return Sums(top, *(x + y for x, y in zip(a[1:], b[1:], strict=True)))


def joined_over(sums: Sums, axis_name: str) -> Sums:
    """The sums of all shards of the columns: one maximum, and one sum of the rest together."""
    top = lax.pmax(sums.top, axis_name)
    others = lax.psum(jnp.stack(rescaled(sums, top)[1:]), axis_name)
    return Sums(top, *others)


def finish(sums: Sums, targets) -> tuple[TokenStats, tuple[Array, Array]]:
    """(logp, entropy, proxy), and the normalizer (m, log S): log π_v = (x_v − m) − log S."""
    present = targets != ABSENT
    d = jnp.where(present, sums.target - sums.top, 0)
    e = jnp.exp(d)
    total = sums.rest + e
    log_total = jnp.log1p(sums.rest + (e - 1))  # keeps its digits where y is the maximum and the rest is small
    entropy = log_total - (sums.moment + d * e) / total
    proxy = (sums.rest / total) ** 2 + sums.squares / total**2
    logp = (d - log_total) + jnp.where(sums.target <= BANNED, -jnp.inf, 0)  # a sum: NaN stays NaN
    empty = sums.top <= BANNED  # all tokens are banned
    stats = logp, jnp.where(empty, 0, entropy), jnp.where(empty, 1, proxy)
    top = jnp.where(empty, 0, sums.top)  # the x of a banned token is far below 0, so that its π is 0
    return TokenStats(*(jnp.where(present, stat, 0) for stat in stats)), (top, log_total)


def slope_of(cotangents: Sequence[Array | SymbolicZero], stats: TokenStats, normalizer, targets, beta) -> Slope:
    """The coefficients of the last equation times β; a cotangent known to be zero costs nothing."""
    absent = [isinstance(cotangent, SymbolicZero) for cotangent in cotangents]
    g, k, q = (
        jnp.zeros_like(stats.logp) if zero else jnp.where(targets == ABSENT, 0, beta * cotangent)
        for zero, cotangent in zip(absent, cotangents, strict=True)
    )
    g = jnp.where(stats.logp == -jnp.inf, 0, g)  # the logp of a banned token is a constant
    target_pi = jnp.exp(stats.logp)
    collision = stats.proxy - 1 + 2 * target_pi  # Q
    a = g if absent[2] else g - 2 * q * target_pi
    constant = -a
    if not absent[1]:
        constant -= k * stats.entropy
    if not absent[2]:
        constant -= 2 * q * collision
    top, log_total = normalizer
    return Slope(top, log_total, a, constant, None if absent[1] else -k, None if absent[2] else 2 * q)


# ------------------------------------------------------------------- one tile's parts, in a kernel as well as out of it


def scaled(z, beta, softcap):
    """(x, ∂x/∂z/β) of the logits z; the latter is None if it is 1."""
    x = z * beta
    banned = x <= BANNED  # false for NaN, which a maximum would not keep on every device
    if softcap is None:
        return jnp.where(banned, BANNED, x), None
    t = jnp.tanh(z / softcap)
    return jnp.where(banned, BANNED, t * (softcap * beta)), 1 - t * t


def absorbed(sums: Sums, x, is_target, is_column=None, target=None) -> Sums:
    """The sums with one more tile x [n, v] of logits; what is not `is_column` adds nothing.

    `target` is Σ x over `is_target` where that is had for less.  The sums may be [n] or, in a kernel, [n, 1].
    """
    keepdims = sums.top.ndim == 2
    add = partial(jnp.sum, axis=-1, keepdims=keepdims)
    if is_column is not None:
        x = jnp.where(is_column, x, BANNED)
    top = jnp.maximum(sums.top, jnp.max(x, axis=-1, keepdims=keepdims))
    old = rescaled(sums, top)
    d = x - (top if keepdims else top[:, None])
    rest = ~is_target if is_column is None else is_column & ~is_target
    e = jnp.where(rest, jnp.exp(d), 0)
    return Sums(
        top,
        old.target + (add(jnp.where(is_target, x, 0)) if target is None else target),
        old.rest + add(e),
        old.squares + add(e * e),
        old.moment + add(d * e),
    )


def slope_at(slope: Slope, x, is_target):
    """β ∂L/∂x of a tile x [n, v], from coefficients [n, 1]."""
    log_pi = (x - slope.top) - slope.log_total
    log_pi = jnp.where(log_pi > 0, 0, log_pi)  # where x is no column's, π stays finite; NaN stays NaN
    pi = jnp.exp(log_pi)
    within = slope.constant
    if slope.log_pi is not None:
        within = within + slope.log_pi * log_pi
    if slope.pi is not None:
        within = within + slope.pi * pi
    return jnp.where(is_target, slope.at_target, 0) + pi * within
