"""Formulas shared by all implementations of token_stats: statistics from sums over columns, and gradients of logits.

Forward, a pass over the columns keeps the running maximum m of each row (online softmax). The target y is kept apart
from the other columns R = {v ≠ y}, so that no digits cancel as π(y) → 1:

    rest = Σ_R e^(x−m),  squares = Σ_R e^(2(x−m)),  moment = Σ_R (x−m) e^(x−m),  d = x_y − m,  S = rest + e^d
    logp = d − log S,   entropy = log S − (moment + d e^d)/S,   proxy = (1 − π_y)² + Σ_R π² = (rest² + squares)/S²

Backward, π_v = e^(x_v − m − log S) is recomputed. With ∂log π_u/∂x_v = 1[u=v] − π_v, Q = Σπ² and the entropy H,

    ∂logp/∂x_v    = 1[v=y] − π_v
    ∂entropy/∂x_v = − Σ_u (log π_u + 1) ∂π_u  = − π_v (log π_v + 1) + π_v (1 − H)  = − π_v (log π_v + H)
    ∂proxy/∂x_v   = − 2 ∂π_y + 2 Σ_u π_u ∂π_u = − 2 π_y (1[v=y] − π_v) + 2 π_v (π_v − Q)

For the cotangents g, k, q of logp, entropy and proxy, with a = g − 2 q π_y,

    ∂L/∂x_v = a 1[v=y] + π_v (−a − k H − 2 q Q − k log π_v + 2 q π_v).

The logits z = h·Wᵀ + b are scaled, x = βz, β = 1/τ. With a soft cap c, x = βc tanh(z/c) and ∂x/∂z = β (1 − tanh²(z/c)).

A token with βz ≤ `BANNED`, which includes −∞, is banned: its π is exactly 0. Its x is set to `BANNED` to avoid ∞ − ∞
and 0·∞. If y is banned, logp is the constant −∞. If all tokens are banned, every π is 0, the entropy 0 and the proxy 1.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from pallas_kernels._vocabulary.types import ABSENT, TokenStats

BANNED = -1e30  # the logit x of banned tokens and padding, and the initial value of the running maximum


class Sums(NamedTuple):
    """Accumulators over the columns seen so far, [N] each, as defined in the module's docstring.

    `top` is m, `target` is x_y (0 until the target's column is seen); `rest`, `squares` and `moment` are sums over R.
    """

    top: Array
    target: Array
    rest: Array
    squares: Array
    moment: Array


class Slope(NamedTuple):
    """Coefficients [N] of β ∂L/∂x_v = at_target 1[v=y] + π_v (constant + log_pi·log π_v + pi·π_v).

    log π_v = (x_v − top) − log_total. `log_pi` and `pi` are None if they are zero.
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
    """The sums relative to the maximum `top`, which must be at least `sums.top`."""
    shift = sums.top - top
    scale = jnp.exp(shift)
    moment = jnp.where(scale > 0, (sums.moment + shift * sums.rest) * scale, 0)  # avoids −∞·0
    return Sums(top, sums.target, sums.rest * scale, sums.squares * scale**2, moment)


def joined(one: Sums, other: Sums) -> Sums:
    """The sums over the union of two disjoint sets of columns."""
    top = jnp.maximum(one.top, other.top)
    a, b = rescaled(one, top), rescaled(other, top)
    return Sums(top, *(x + y for x, y in zip(a[1:], b[1:], strict=True)))


def joined_over(sums: Sums, axis_name: str) -> Sums:
    """The sums over all shards of the columns, by one pmax and one psum of the stacked other fields."""
    top = lax.pmax(sums.top, axis_name)
    others = lax.psum(jnp.stack(rescaled(sums, top)[1:]), axis_name)
    return Sums(top, *others)


def finish(sums: Sums, targets) -> tuple[TokenStats, tuple[Array, Array]]:
    """TokenStats, and the normalizer (m, log S) with log π_v = (x_v − m) − log S."""
    present = targets != ABSENT
    d = jnp.where(present, sums.target - sums.top, 0)
    e = jnp.exp(d)
    total = sums.rest + e
    log_total = jnp.log1p(sums.rest + (e - 1))  # precise if y is the maximum and rest is small
    entropy = log_total - (sums.moment + d * e) / total
    proxy = (sums.rest / total) ** 2 + sums.squares / total**2
    logp = (d - log_total) + jnp.where(sums.target <= BANNED, -jnp.inf, 0)  # an addition, so NaN stays NaN
    empty = sums.top <= BANNED  # all tokens are banned
    stats = logp, jnp.where(empty, 0, entropy), jnp.where(empty, 1, proxy)
    top = jnp.where(empty, 0, sums.top)  # with m = 0, e^(BANNED − m) is 0 in the backward pass
    return TokenStats(*(jnp.where(present, stat, 0) for stat in stats)), (top, log_total)


def slope_of(cotangents: Sequence[Array | SymbolicZero], stats: TokenStats, normalizer, targets, beta) -> Slope:
    """Coefficients of β ∂L/∂x from the cotangents (g, k, q); terms of symbolic zero cotangents are left out."""
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


# ----------------------------------------------------------------- operations on one tile, inside and outside of Pallas


def scaled(z, beta, softcap):
    """(x, (∂x/∂z)/β) from z = h·Wᵀ + b; the second is None without a soft cap, where it is 1."""
    x = z * beta
    banned = x <= BANNED  # false for NaN; jnp.maximum drops NaN on some devices
    if softcap is None:
        return jnp.where(banned, BANNED, x), None
    t = jnp.tanh(z / softcap)
    return jnp.where(banned, BANNED, t * (softcap * beta)), 1 - t * t


def absorbed(sums: Sums, x, is_target, is_column=None, target=None) -> Sums:
    """The sums with one more tile of logits x [n, v]; entries that are not `is_column` add nothing.

    `target` [n] is Σ x over `is_target`, computed here if None. The sums are [n], or [n, 1] inside a kernel.
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
    """β ∂L/∂x of a tile of logits x [n, v], from coefficients [n, 1]."""
    log_pi = (x - slope.top) - slope.log_total
    log_pi = jnp.where(log_pi > 0, 0, log_pi)  # π stays finite at padding; NaN stays NaN
    pi = jnp.exp(log_pi)
    within = slope.constant
    if slope.log_pi is not None:
        within = within + slope.log_pi * log_pi
    if slope.pi is not None:
        within = within + slope.pi * pi
    return jnp.where(is_target, slope.at_target, 0) + pi * within
