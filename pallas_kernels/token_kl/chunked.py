"""token_kl over tiles of tokens × vocabulary under XLA; the logits [N, V] of neither policy are stored.

Forward, one pass over the vocabulary with the running maxima m of the policy's logits x and k of the reference's z:

    S = Σ e^(x−m),   R = Σ e^(z−k),   M = Σ e^(x−m) ((x − m) − (z − k)),     KL = M/S − log S + log R

A term of M with e^(x−m) = 0 is 0; the term of any other token that the reference bans is ∞.

Backward, each tile of logits is recomputed, and ∂KL/∂x_v = π_v (log π_v − log ρ_v − KL), or 0 if KL = ∞.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels._dispatch import axes_of, promoted, varying_over
from pallas_kernels._vocabulary.gradients import tiled_gradients
from pallas_kernels._vocabulary.statistics import BANNED
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


class _Inputs(NamedTuple):
    """Array arguments of the custom_vjp. `present` [N] is ABSENT if mask is false, else ELSEWHERE."""

    hidden: Array
    unembedding: Array
    bias: Array | None
    ref_hidden: Array
    ref_unembedding: Array
    ref_bias: Array | None
    present: Array
    beta: Array
    softcap: Array | None
    ref_softcap: Array | None

    def heads(self) -> tuple[Head, Head]:
        size = self.unembedding.shape[0]
        return (
            Head(self.unembedding, self.bias, self.beta, self.softcap, size),
            Head(self.ref_unembedding, self.ref_bias, self.beta, self.ref_softcap, size),
        )


def token_kl(
    hidden, unembedding, ref_hidden, ref_unembedding, mask, *, temperature=1.0, softcap=(None, None), bias=(None, None),
    tile: Tile | None = None
):  # fmt: skip
    accumulator = promoted(dtypes(hidden, unembedding)[1], dtypes(ref_hidden, ref_unembedding)[1])
    if hidden.shape[0] == 0:
        return jnp.zeros(0, accumulator)
    beta = lax.stop_gradient(1 / jnp.asarray(temperature, accumulator))
    caps = (cap if cap is None else lax.stop_gradient(jnp.asarray(cap, accumulator)) for cap in softcap)
    present = jnp.where(mask, ELSEWHERE, ABSENT).astype(jnp.int32)
    arrays = hidden, unembedding, bias[0], ref_hidden, ref_unembedding, bias[1], present, beta, *caps
    return _tiled(tile)(*varying_over(axes_of(*arrays), *arrays))


@cache
def _tiled(tile: Tile | None):
    function = jax.custom_vjp(lambda *inputs: _forward(tile, _Inputs(*inputs))[0])
    function.defvjp(partial(_save, tile), partial(_backward, tile))
    return function


class _Sums(NamedTuple):
    """Accumulators over the columns seen so far, [n] each: m, k, S, R and M of the module's docstring."""

    top: Array
    ref_top: Array
    total: Array
    ref_total: Array
    moment: Array


def _forward(tile: Tile | None, inputs: _Inputs):
    """(kl, normalizers (m, log S, k, log R)), [N] each."""
    hidden, ref_hidden, present, beta = inputs.hidden, inputs.ref_hidden, inputs.present, inputs.beta
    head, ref_head = inputs.heads()
    tile, n, v = fitted(tile, hidden, head)
    zero = jnp.zeros_like(present, beta.dtype)

    def rows(start, _, results):
        y, h, g = sliced((present, hidden, ref_hidden), start, tile.tokens)
        h, g, nothing = present_rows(h, y), present_rows(g, y), zero[: tile.tokens]

        def columns(first, unseen, sums):
            part, ref_part = (part_of(of, first, tile.vocabulary) for of in (head, ref_head))
            return _absorb(sums, _logits(h, part), _logits(g, ref_part), is_column(head, part, unseen))

        def visit():
            least = nothing + jnp.asarray(BANNED, beta.dtype)
            sums = cover(v, tile.vocabulary, columns, _Sums(least, least, nothing, nothing, nothing))
            log_s, log_r = jnp.log(sums.total), jnp.log(sums.ref_total)
            absent = (y == ABSENT) | (sums.top <= BANNED)  # the policy bans all tokens
            kl = jnp.where(absent, 0, sums.moment / sums.total - log_s + log_r)
            return kl, sums.top, log_s, sums.ref_top, log_r

        found = visit() if tile.tokens == n else unless_absent(y, visit, (nothing,) * 5)
        return put(results, found, start)

    kl, *normalizers = cover(n, tile.tokens, rows, (zero,) * 5)
    return kl, normalizers


def _absorb(sums: _Sums, x, z, is_column) -> _Sums:
    """The sums with one more tile of logits, x and z [n, v]; entries that are not `is_column` add nothing."""
    top, ref_top = (jnp.maximum(old, jnp.max(new, axis=-1)) for old, new in ((sums.top, x), (sums.ref_top, z)))
    shift, ref_shift = sums.top - top, sums.ref_top - ref_top
    scale = jnp.exp(shift)
    d, c = x - top[:, None], z - ref_top[:, None]
    e, f = (jnp.exp(u) if is_column is None else jnp.where(is_column, jnp.exp(u), 0) for u in (d, c))
    terms = jnp.where(e == 0, 0, e * (d - jnp.where(z <= BANNED, -jnp.inf, c)))  # NaN stays NaN
    moment = jnp.where(scale > 0, (sums.moment + (shift - ref_shift) * sums.total) * scale, 0)  # avoids ∞·0
    return _Sums(
        top=top,
        ref_top=ref_top,
        total=sums.total * scale + jnp.sum(e, axis=-1),
        ref_total=sums.ref_total * jnp.exp(ref_shift) + jnp.sum(f, axis=-1),
        moment=moment + jnp.sum(terms, axis=-1),
    )


def _save(tile: Tile | None, *arrays):
    inputs = _Inputs(*arrays)
    kl, normalizers = _forward(tile, inputs)
    return kl, (inputs, kl, normalizers)


def _backward(tile: Tile | None, saved, cotangent):
    inputs, kl, normalizers = saved
    head, ref_head = inputs.heads()
    tile, _, _ = fitted(tile, inputs.hidden, head)
    constant = (inputs.present == ABSENT) | (normalizers[0] <= BANNED) | (kl == jnp.inf)
    g = jnp.where(constant, 0, cotangent * inputs.beta)
    rows = *normalizers, jnp.where(constant, 0, kl), g, inputs.ref_hidden

    def slope(start, first, y, h, part):
        *of_rows, ref_h = sliced(rows, start, tile.tokens)
        m, log_s, k, log_r, divergence, g = (x[:, None] for x in of_rows)
        ref_part = part_of(ref_head, first, tile.vocabulary)
        x, uncapped = logits(h, part)
        log_pi = x.astype(part.beta.dtype) - m - log_s
        log_rho = _logits(present_rows(ref_h, y), ref_part) - k - log_r
        dz = g * jnp.exp(log_pi) * (log_pi - log_rho - divergence)
        return dz if uncapped is None else dz * uncapped

    gradients = tiled_gradients(tile, inputs.hidden, head, inputs.present, slope)
    return *gradients, *[None] * (len(inputs) - len(gradients))


def _logits(h, part: Head):
    return logits(h, part)[0].astype(part.beta.dtype)
