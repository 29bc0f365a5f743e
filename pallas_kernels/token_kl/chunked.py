"""token_kl over tiles of tokens × vocabulary: the logits [N, V] of neither policy exist, forward or backward.

Forward, one pass over the vocabulary with the running maxima m of the policy's logits x and k of the reference's z:

    S = Σ e^(x−m),   R = Σ e^(z−k),   M = Σ e^(x−m) ((x − m) − (z − k)),     KL = M/S − log S + log R

Backward, each tile is computed again, and ∂KL/∂x_v = π_v (log π_v − log ρ_v − KL).
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pallas_kernels._dispatch import promoted, varying_alike
from pallas_kernels.token_stats._gradients import tiled_gradients
from pallas_kernels.token_stats._tiles import best_tile, cover
from pallas_kernels.token_stats._types import Tile, dtypes


def token_kl(hidden, unembedding, ref_hidden, ref_unembedding, mask, *, temperature=1.0, tiles: Tile | None = None):
    """The same function as `reference.token_kl`, in memory that does not grow with N·V."""
    n, vocabulary = hidden.shape[0], unembedding.shape[0]
    accumulator = promoted(dtypes(hidden, unembedding)[1], dtypes(ref_hidden, ref_unembedding)[1])
    if n == 0:
        return jnp.zeros(0, accumulator)
    tiles = tiles or best_tile(n, vocabulary)
    tiles = Tile(min(tiles.tokens, n), min(tiles.vocabulary, vocabulary))
    beta = lax.stop_gradient(1 / jnp.asarray(temperature, accumulator))
    return _tiled(tiles)(*varying_alike(hidden, unembedding, ref_hidden, ref_unembedding, mask, beta))


@cache
def _tiled(tiles: Tile):
    function = jax.custom_vjp(lambda *inputs: _forward(tiles, *inputs)[0])
    function.defvjp(partial(_save, tiles), partial(_backward, tiles))
    return function


class _Sums(NamedTuple):
    """Of the columns seen so far, [n] each: the maxima m and k, and what the module's first equations name."""

    top: Array
    ref_top: Array
    total: Array
    ref_total: Array
    moment: Array


def _forward(tiles: Tile, hidden, unembedding, ref_hidden, ref_unembedding, mask, beta):
    """The divergence, and the normalisers (m, log S, k, log R) of each row, [N] each."""
    n = hidden.shape[0]

    def rows(start, _, results):
        h, g = (_rows(x, mask, start, tiles.tokens) for x in (hidden, ref_hidden))

        def columns(first, unseen, sums):
            x, z = (_logits(r, w, first, tiles, beta) for r, w in ((h, unembedding), (g, ref_unembedding)))
            return _absorb(sums, x, z, unseen[None])

        zero = jnp.zeros_like(h[:, 0], beta.dtype)
        start_sums = _Sums(zero - jnp.inf, zero - jnp.inf, zero, zero, zero)
        sums = cover(unembedding.shape[0], tiles.vocabulary, columns, start_sums)
        log_s, log_r = jnp.log(sums.total), jnp.log(sums.ref_total)
        kl = sums.moment / sums.total - log_s + log_r
        kl = jnp.where(lax.dynamic_slice_in_dim(mask, start, tiles.tokens), kl, 0)
        tile = kl, sums.top, log_s, sums.ref_top, log_r
        return jax.tree.map(lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, start, 0), results, tile)

    kl, *normalisers = cover(n, tiles.tokens, rows, (jnp.zeros_like(mask, beta.dtype),) * 5)
    return kl, normalisers


def _absorb(sums: _Sums, x, z, unseen) -> _Sums:
    """The sums with one more tile of both logits [n, v]; a column that is not `unseen` adds nothing."""
    top, ref_top = (jnp.maximum(old, jnp.max(new, axis=-1)) for old, new in ((sums.top, x), (sums.ref_top, z)))
    shift, ref_shift = (
        jnp.where(jnp.isfinite(old), old - new, 0) for old, new in ((sums.top, top), (sums.ref_top, ref_top))
    )
    d, c = x - top[:, None], z - ref_top[:, None]
    e = jnp.where(unseen, jnp.exp(d), 0)
    return _Sums(
        top=top,
        ref_top=ref_top,
        total=sums.total * jnp.exp(shift) + jnp.sum(e, axis=-1),
        ref_total=sums.ref_total * jnp.exp(ref_shift) + jnp.sum(jnp.where(unseen, jnp.exp(c), 0), axis=-1),
        moment=(sums.moment + (shift - ref_shift) * sums.total) * jnp.exp(shift) + jnp.sum(e * (d - c), axis=-1),
    )


def _save(tiles: Tile, *inputs):
    kl, normalisers = _forward(tiles, *inputs)
    return kl, (inputs, kl, normalisers)


def _backward(tiles: Tile, saved, cotangent):
    (hidden, unembedding, ref_hidden, ref_unembedding, mask, beta), kl, normalisers = saved
    slope = jnp.where(mask, cotangent * beta, 0)

    def rows_at(start):
        m, log_s, k, log_r, divergence, g = (
            lax.dynamic_slice_in_dim(whole, start, tiles.tokens)[:, None] for whole in (*normalisers, kl, slope)
        )
        h, ref_h = (_rows(x, mask, start, tiles.tokens) for x in (hidden, ref_hidden))

        def slope_of(first, _):
            log_pi = _logits(h, unembedding, first, tiles, beta) - m - log_s
            log_rho = _logits(ref_h, ref_unembedding, first, tiles, beta) - k - log_r
            return g * jnp.exp(log_pi) * (log_pi - log_rho - divergence)

        return h, slope_of

    return *tiled_gradients(tiles, hidden, unembedding, beta.dtype, rows_at), None, None, None, None


def _rows(x, mask, start, size: int):
    """A tile of rows, zeros where the mask is false: whatever stands there must not reach ∂W."""
    x, present = (lax.dynamic_slice_in_dim(whole, start, size) for whole in (x, mask))
    return jnp.where(present[:, None], x, 0)


def _logits(h, unembedding, first, tiles: Tile, beta):
    w = lax.dynamic_slice_in_dim(unembedding, first, tiles.vocabulary)
    common, accumulator = dtypes(h, w)
    x = jnp.einsum("nd,vd->nv", h.astype(common), w.astype(common), preferred_element_type=accumulator)
    return x.astype(beta.dtype) * beta
