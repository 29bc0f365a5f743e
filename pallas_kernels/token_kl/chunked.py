"""token_kl over tiles of tokens × vocabulary: the logits [N, V] of neither policy exist, forward or backward.

Forward, one pass over the vocabulary with the running maxima m of the policy's logits x and k of the reference's z:

    S = Σ e^(x−m),   R = Σ e^(z−k),   M = Σ e^(x−m) ((x − m) − (z − k)),     KL = M/S − log S + log R

Backward, each tile is computed again, and ∂KL/∂x_v = π_v (log π_v − log ρ_v − KL).
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels._dispatch import axes_of, promoted, varying_over
from pallas_kernels._vocabulary.gradients import tiled_gradients
from pallas_kernels._vocabulary.statistics import lowest
from pallas_kernels._vocabulary.tiles import (
    cover,
    fitted,
    is_column,
    logits,
    part_of,
    present_rows,
    put,
    sliced,
    unless_absent,
)
from pallas_kernels._vocabulary.types import ABSENT, ELSEWHERE, Head, Tile, dtypes


def token_kl(hidden, unembedding, ref_hidden, ref_unembedding, mask, *, temperature=1.0, tile: Tile | None = None):
    """The same function as `reference.token_kl`, in memory that does not grow with N·V."""
    accumulator = promoted(dtypes(hidden, unembedding)[1], dtypes(ref_hidden, ref_unembedding)[1])
    if hidden.shape[0] == 0:
        return jnp.zeros(0, accumulator)
    beta = lax.stop_gradient(1 / jnp.asarray(temperature, accumulator))
    present = jnp.where(mask, ELSEWHERE, ABSENT).astype(jnp.int32)
    arrays = hidden, unembedding, ref_hidden, ref_unembedding, present, beta
    return _tiled(tile)(*varying_over(axes_of(*arrays), *arrays))


@cache
def _tiled(tile: Tile | None):
    function = jax.custom_vjp(lambda *inputs: _forward(tile, *inputs)[0])
    function.defvjp(partial(_save, tile), partial(_backward, tile))
    return function


class _Sums(NamedTuple):
    """Of the columns seen so far, [n] each: the maxima m and k, and what the module's first equations name."""

    top: Array
    ref_top: Array
    total: Array
    ref_total: Array
    moment: Array


def _forward(tile: Tile | None, hidden, unembedding, ref_hidden, ref_unembedding, present, beta):
    """The divergence, and the normalisers (m, log S, k, log R) of each row, [N] each."""
    head, ref_head = (Head(w, None, beta, None, w.shape[0]) for w in (unembedding, ref_unembedding))
    tile, n, v = fitted(tile, hidden, head)
    zero = jnp.zeros_like(present, beta.dtype)

    def rows(start, _, results):
        y, h, g = sliced((present, hidden, ref_hidden), start, tile.tokens)
        h, g, nothing = present_rows(h, y), present_rows(g, y), zero[: tile.tokens]

        def columns(first, unseen, sums):
            part, ref_part = (part_of(of, first, tile.vocabulary) for of in (head, ref_head))
            return _absorb(sums, _logits(h, part), _logits(g, ref_part), is_column(head, part, unseen))

        def visit():
            least = nothing + lowest(beta.dtype)
            sums = cover(v, tile.vocabulary, columns, _Sums(least, least, nothing, nothing, nothing))
            log_s, log_r = jnp.log(sums.total), jnp.log(sums.ref_total)
            kl = jnp.where(y == ABSENT, 0, sums.moment / sums.total - log_s + log_r)
            return kl, sums.top, log_s, sums.ref_top, log_r

        found = visit() if tile.tokens == n else unless_absent(y, visit, (nothing,) * 5)
        return put(results, found, start)

    kl, *normalisers = cover(n, tile.tokens, rows, (zero,) * 5)
    return kl, normalisers


def _absorb(sums: _Sums, x, z, is_column) -> _Sums:
    """The sums with one more tile of both logits [n, v]; what is not `is_column` adds nothing."""
    top, ref_top = (jnp.maximum(old, jnp.max(new, axis=-1)) for old, new in ((sums.top, x), (sums.ref_top, z)))
    shift, ref_shift = sums.top - top, sums.ref_top - ref_top
    scale = jnp.exp(shift)
    d, c = x - top[:, None], z - ref_top[:, None]
    e, f = (jnp.exp(u) if is_column is None else jnp.where(is_column, jnp.exp(u), 0) for u in (d, c))
    moment = jnp.where(scale > 0, (sums.moment + (shift - ref_shift) * sums.total) * scale, 0)  # never ∞·0
    return _Sums(
        top=top,
        ref_top=ref_top,
        total=sums.total * scale + jnp.sum(e, axis=-1),
        ref_total=sums.ref_total * jnp.exp(ref_shift) + jnp.sum(f, axis=-1),
        moment=moment + jnp.sum(e * (d - c), axis=-1),
    )


def _save(tile: Tile | None, *inputs):
    kl, normalisers = _forward(tile, *inputs)
    return kl, (inputs, kl, normalisers)


def _backward(tile: Tile | None, saved, cotangent):
    (hidden, unembedding, ref_hidden, ref_unembedding, present, beta), kl, normalisers = saved
    head, ref_head = (Head(w, None, beta, None, w.shape[0]) for w in (unembedding, ref_unembedding))
    tile, _, _ = fitted(tile, hidden, head)
    rows = *normalisers, kl, jnp.where(present == ABSENT, 0, cotangent * beta), ref_hidden

    def slope(start, first, y, h, part):
        *of_rows, ref_h = sliced(rows, start, tile.tokens)
        m, log_s, k, log_r, divergence, g = (x[:, None] for x in of_rows)
        ref_part = part_of(ref_head, first, tile.vocabulary)
        log_pi = _logits(h, part) - m - log_s
        log_rho = _logits(present_rows(ref_h, y), ref_part) - k - log_r
        return g * jnp.exp(log_pi) * (log_pi - log_rho - divergence)

    dh, dw, _ = tiled_gradients(tile, hidden, head, present, slope)
    return dh, dw, None, None, None, None


def _logits(h, part: Head):
    return logits(h, part)[0].astype(part.beta.dtype)
