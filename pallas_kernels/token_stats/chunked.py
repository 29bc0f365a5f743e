"""token_stats over tiles of tokens × vocabulary: the logits [N, V] never exist, forward or backward.

Forward, for each row one pass over the vocabulary with the running maximum m (online softmax), keeping the target y
apart from the rest R = {v ≠ y}, so that nothing cancels where π(y) → 1:

    rest = Σ_R e^(x−m),  squares = Σ_R e^(2(x−m)),  moment = Σ_R (x−m) e^(x−m),  d = x_y − m,  S = rest + e^d
    logp = d − log S,   entropy = log S − (moment + d e^d)/S,   proxy = (1 − π_y)² + Σ_R π² = (rest² + squares)/S²

Backward, each tile is computed again, π_v = e^(x_v − m − log S), and with Q = Σπ², H the entropy:

    ∂logp/∂x_v    = 1[v=y] − π_v
    ∂entropy/∂x_v = − π_v (log π_v + H)
    ∂proxy/∂x_v   = 2 π_v (π_v − Q) − 2 π_y (1[v=y] − π_v)

so that for the cotangents g, k, q of the three, with a = g − 2 q π_y,

    ∂L/∂x_v = a 1[v=y] + π_v (−a − k H − 2 q Q − k log π_v + 2 q π_v),    ∂h = ∂x·W/τ,   ∂W = ∂xᵀ·h/τ.

Neither N nor V need be a multiple of its tile (see `_tiles`).
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from pallas_kernels._dispatch import varying_alike
from pallas_kernels.token_stats._gradients import tiled_gradients
from pallas_kernels.token_stats._tiles import Tiles, best_tiles, cover
from pallas_kernels.token_stats._types import TokenStats, dtypes


def token_stats(
    hidden: Float[Array, "N D"],
    unembedding: Float[Array, "V D"],
    targets: Int[Array, " N"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    tiles: Tiles | None = None,
) -> TokenStats:
    """The same function as `reference.token_stats`, in memory that does not grow with N·V."""
    vocabulary, accumulator = unembedding.shape[0], dtypes(hidden, unembedding)[1]
    if hidden.shape[0] == 0:
        return TokenStats(*(jnp.zeros(0, accumulator),) * 3)
    tiles = tiles or best_tiles(hidden.shape[0], vocabulary)
    tiles = Tiles(min(tiles.tokens, hidden.shape[0]), min(tiles.vocabulary, vocabulary))
    targets = jnp.where((targets >= 0) & (targets < vocabulary), targets, -1).astype(jnp.int32)
    beta = lax.stop_gradient(1 / jnp.asarray(temperature, accumulator))
    return _tiled(tiles)(*varying_alike(hidden, unembedding, targets, beta))


@cache
def _tiled(tiles: Tiles):
    """(hidden, unembedding, targets, 1/τ) -> TokenStats, with its gradients."""
    function = jax.custom_vjp(lambda *inputs: _forward(tiles, *inputs)[0])
    function.defvjp(partial(_save, tiles), partial(_backward, tiles), symbolic_zeros=True)
    return function


# ---------------------------------------------------------------------------------------------------------- forward


class _Sums(NamedTuple):
    """Of the columns seen so far, [n] each: the maximum m, and what the module's first equations name."""

    top: Array
    target: Array
    rest: Array
    squares: Array
    moment: Array


def _forward(tiles: Tiles, hidden, unembedding, targets, beta):
    """The statistics, and the normaliser (m, log S) of each row, [N] each."""
    n = hidden.shape[0]

    def rows(start, _, results):
        y = lax.dynamic_slice_in_dim(targets, start, tiles.tokens)
        h = _present_rows(lax.dynamic_slice_in_dim(hidden, start, tiles.tokens), y)

        def columns(first, unseen, sums):
            x = _logits(h, lax.dynamic_slice_in_dim(unembedding, first, tiles.vocabulary), beta)
            return _absorb(sums, x, _is_target(y, first, tiles.vocabulary), unseen[None])

        zero = jnp.zeros_like(y, beta.dtype)
        sums = cover(unembedding.shape[0], tiles.vocabulary, columns, _Sums(zero - jnp.inf, *[zero] * 4))
        return jax.tree.map(
            lambda whole, tile: lax.dynamic_update_slice_in_dim(whole, tile, start, 0), results, _finish(sums, y)
        )

    zeros = jnp.zeros_like(targets, beta.dtype)
    return cover(n, tiles.tokens, rows, (TokenStats(*[zeros] * 3), (zeros, zeros)))


def _absorb(sums: _Sums, x, is_target, unseen) -> _Sums:
    """The sums with one more tile x [n, v]; a column that is not `unseen` adds nothing."""
    top = jnp.maximum(sums.top, jnp.max(x, axis=-1))  # a column seen before does no harm here
    shift = jnp.where(jnp.isfinite(sums.top), sums.top - top, 0)  # the first tile has nothing to rescale
    scale = jnp.exp(shift)
    d = x - top[:, None]
    e = jnp.where(unseen & ~is_target, jnp.exp(d), 0)
    return _Sums(
        top=top,
        target=sums.target + jnp.sum(jnp.where(unseen & is_target, x, 0), axis=-1),
        rest=sums.rest * scale + jnp.sum(e, axis=-1),
        squares=sums.squares * scale**2 + jnp.sum(e * e, axis=-1),
        moment=(sums.moment + shift * sums.rest) * scale + jnp.sum(d * e, axis=-1),
    )


def _finish(sums: _Sums, y):
    """((logp, entropy, proxy), (m, log S)) of a tile of rows."""
    present = y >= 0
    d = jnp.where(present, sums.target - sums.top, 0)
    e = jnp.exp(d)
    total = sums.rest + e
    log_total = jnp.log1p(sums.rest + (e - 1))  # keeps its digits where y is the maximum and the rest is small
    entropy = log_total - (sums.moment + d * e) / total
    proxy = ((sums.rest / total) ** 2) + sums.squares / total**2
    stats = TokenStats(*(jnp.where(present, stat, 0) for stat in (d - log_total, entropy, proxy)))
    return stats, (sums.top, log_total)


# --------------------------------------------------------------------------------------------------------- backward


def _save(tiles: Tiles, hidden, unembedding, targets, beta):
    values = hidden.value, unembedding.value, targets.value, beta.value
    stats, normaliser = _forward(tiles, *values)
    return stats, (values, stats, normaliser)


class _Slope(NamedTuple):
    """∂L/∂x_v = at_target 1[v=y] + π_v (constant + log_pi log π_v + pi π_v), a row each; None is a zero."""

    at_target: Array
    constant: Array
    log_pi: Array | None
    pi: Array | None


def _slope(cotangents: TokenStats, stats: TokenStats, present, beta) -> _Slope:
    """The coefficients of the module's last equation, divided by τ; a cotangent known to be zero costs nothing."""
    absent = [isinstance(cotangent, SymbolicZero) for cotangent in cotangents]
    g, k, q = (
        jnp.zeros_like(stats.logp) if zero else jnp.where(present, beta * cotangent, 0)
        for zero, cotangent in zip(absent, cotangents, strict=True)
    )
    target_pi = jnp.exp(stats.logp)
    collision = stats.proxy - 1 + 2 * target_pi  # Q
    a = g if absent[2] else g - 2 * q * target_pi
    constant = -a
    if not absent[1]:
        constant -= k * stats.entropy
    if not absent[2]:
        constant -= 2 * q * collision
    return _Slope(a, constant, None if absent[1] else -k, None if absent[2] else 2 * q)


def _backward(tiles: Tiles, saved, cotangents: TokenStats):
    (hidden, unembedding, targets, beta), stats, (top, log_total) = saved
    slope = _slope(cotangents, stats, targets >= 0, beta)

    def rows_at(start):
        y, m, log_s, coefficients = jax.tree.map(
            lambda whole: lax.dynamic_slice_in_dim(whole, start, tiles.tokens), (targets, top, log_total, slope)
        )
        coefficients = jax.tree.map(lambda c: c[:, None], coefficients)
        h = _present_rows(lax.dynamic_slice_in_dim(hidden, start, tiles.tokens), y)

        def slope_of(first, w):
            log_pi = (_logits(h, w, beta) - m[:, None]) - log_s[:, None]
            return _slope_at(coefficients, log_pi, _is_target(y, first, tiles.vocabulary))

        return h, slope_of

    return *tiled_gradients(tiles, hidden, unembedding, beta.dtype, rows_at), None, None


def _slope_at(slope: _Slope, log_pi, is_target):
    pi = jnp.exp(log_pi)
    within = slope.constant
    if slope.log_pi is not None:
        within = within + slope.log_pi * log_pi
    if slope.pi is not None:
        within = within + slope.pi * pi
    return jnp.where(is_target, slope.at_target, 0) + pi * within


# ------------------------------------------------------------------------------------------------- one tile's parts


def _logits(h, w, beta):
    common, accumulator = dtypes(h, w)
    return jnp.einsum("nd,vd->nv", h.astype(common), w.astype(common), preferred_element_type=accumulator) * beta


def _is_target(y, first, columns: int):
    return y[:, None] == (first + jnp.arange(columns, dtype=jnp.int32))[None]


def _present_rows(h, y):
    """h with rows of zeros where there is no target: whatever stands there must not reach ∂W."""
    return jnp.where((y >= 0)[:, None], h, 0)
