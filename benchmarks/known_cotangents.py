"""Gradients computed in the forward pass (three products of N·D·V), compared with token_stats' recomputation (four).

    python benchmarks/known_cotangents.py [--size N D V] [--tiles 256 512 ...] [--turns 5]     on this CPU, float32
    python benchmarks/known_cotangents.py --chip v5e [--size N D V] [--tiles 1024 ...]         for a TPU, bfloat16

If the cotangents of the outputs are known in advance, as in one on-policy step, the logits of a tile of tokens × the
whole vocabulary are computed once, for the outputs and both gradients. Memory holds the float32 logits of one tile and
a float32 ∂unembedding, to which every tile adds. On a CPU the benchmark prints ratios of CPU time from interleaved
turns. For a TPU, where nothing runs, it prints the compiler's estimate of cycles.
"""

import argparse
import re

import jax
import jax.numpy as jnp
import token_stats as bench
import tpu_chips
from jax import lax

from pallas_kernels import TokenStats, token_stats

UNKNOWN = 2**62  # more cycles mark an operation without an estimate, such as a few copies on tpu7x


def recomputed(hidden, unembedding, targets, cotangents):
    """(stats, ∂hidden, ∂unembedding) by `token_stats` and its gradient."""
    stats, back = jax.vjp(lambda h, w: token_stats(h, w, targets), hidden, unembedding)
    return stats, *back(cotangents)


def in_one_pass(tile):
    """A function like `recomputed` that computes the logits once, for `tile` tokens at a time."""

    def run(hidden, unembedding, targets, cotangents):
        def step(gradient, of_tile):
            h, y, g = of_tile
            stats, dz = dense_tile(jnp.einsum("nd,vd->nv", h, unembedding, preferred_element_type=jnp.float32), y, g)
            dz = dz.astype(h.dtype)
            gradient += jnp.einsum("nv,nd->vd", dz, h, preferred_element_type=jnp.float32)
            return gradient, (stats, dz @ unembedding)

        tiles = jax.tree.map(lambda x: x.reshape(-1, tile, *x.shape[1:]), (hidden, targets, cotangents))
        nothing = jnp.zeros(unembedding.shape, jnp.float32)
        gradient, (stats, dh) = lax.scan(step, nothing, tiles)
        stats = jax.tree.map(jnp.ravel, stats)
        return stats, dh.reshape(hidden.shape), gradient.astype(unembedding.dtype)

    return run


def dense_tile(z, y, g):
    """(TokenStats, ∂L/∂z) from logits z [n, V], targets y [n] and cotangents g of the statistics.

    ∂logp = δ − π,  ∂entropy = −π (log π + entropy),  ∂proxy = 2 π (π − Σπ² + π(y)) − 2 π(y) δ.
    """
    shifted = z - jnp.max(z, axis=-1, keepdims=True)
    e = jnp.exp(shifted)
    total = jnp.sum(e, axis=-1)
    target = lax.broadcasted_iota(jnp.int32, z.shape, 1) == y[:, None]
    logp = jnp.sum(jnp.where(target, shifted, 0), axis=-1) - jnp.log(total)
    entropy = jnp.log(total) - jnp.sum(e * shifted, axis=-1) / total
    squares, p = jnp.sum(e * e, axis=-1) / total**2, jnp.exp(logp)
    pi, log_pi = e / total[:, None], shifted - jnp.log(total)[:, None]
    of_logp, of_entropy, of_proxy, entropy_, squares_, p_ = (x[:, None] for x in (*g, entropy, squares, p))
    slope = -of_logp - of_entropy * (log_pi + entropy_) + 2 * of_proxy * (pi - squares_ + p_)
    dz = pi * slope + jnp.where(target, of_logp - 2 * of_proxy * p_, 0)
    return TokenStats(logp, entropy, 1 - 2 * p + squares), dz


def arguments(n, d, v, dtype):
    hidden, unembedding, targets = bench.inputs(n, d, v, dtype)
    cotangents = TokenStats(*(jax.random.normal(key, n) for key in jax.random.split(jax.random.key(1), 3)))
    return hidden, unembedding, targets, cotangents


def on_cpu(size, tiles, turns):
    n, d, v = size
    inputs = arguments(n, d, v, jnp.float32)
    forms = {"recomputed": recomputed} | {f"in one pass, {tile} tokens": in_one_pass(tile) for tile in tiles}
    made = {name: jax.jit(form).lower(*inputs).compile() for name, form in forms.items()}
    ours = jax.tree.leaves(made["recomputed"](*inputs))
    best = bench.seconds(made, inputs, turns)
    for name, program in made.items():
        found = jax.tree.leaves(program(*inputs))
        apart = max(float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y))) for x, y in zip(found, ours, strict=True))
        cost = f"{best[name] / best['recomputed']:.2f} x recomputed, temporaries {bench.temporaries(program):.1f} MB"
        print(f"N,D,V {tuple(size)} float32 {name}: {cost}, differs by {apart:.0e}", flush=True)


def for_tpu(name, size, tiles):
    """Compiles a loop over two tiles and scales its cycles to N; cycles outside of the loop count once."""
    chip = tpu_chips.CHIPS[name]
    n, d, v = size
    for tile in tiles:
        shapes = jax.eval_shape(lambda tile=tile: arguments(2 * tile, d, v, jnp.bfloat16))
        program = tpu_chips.compile_for(chip, in_one_pass(tile), shapes)
        once, each = cycles(program.as_text() or "")
        seconds = (once + each * n / tile) / chip.clock
        share = 8 * n * d * v / chip.flops / seconds
        about = f"{1e3 * seconds:.0f} ms, {100 * share:.1f} % of the peak rate for 8·N·D·V"
        print(f"{name}, in one pass, {tile} tokens: {about}, temporaries {tpu_chips.figures(program).temporaries:.0f} "
              f"MiB; {each} cycles per tile, {once} outside of the loop", flush=True)  # fmt: skip


def cycles(text: str) -> tuple[int, int]:
    """Estimated cycles of a program with one loop: (outside of the loop, per iteration)."""
    body = re.search(r" while\(.*body=%?([\w.-]+)", text)
    if body is None:
        raise ValueError("the program has no loop: expected a loop over tiles; use a size with more than one tile")
    found = {True: 0, False: 0}
    for computation in text.split("\n\n"):
        inside = computation.startswith(f"%{body[1]} ")
        of_operations = map(int, re.findall(r'"estimated_cycles":"(\d+)"', computation))
        found[inside] += sum(cycles for cycles in of_operations if cycles < UNKNOWN)
    return found[False], found[True]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=3, type=int, metavar=("N", "D", "V"))
    parser.add_argument("--tiles", nargs="+", type=int, help="tokens per tile; each must divide N")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--chip", choices=tuple(tpu_chips.CHIPS))
    options = parser.parse_args()
    size = options.size or ((4096, 4096, 151936) if options.chip else (2048, 512, 32768))
    tiles = options.tiles or ((1024, 2048) if options.chip else (256, 512, 1024))
    if any(tile < 1 or size[0] % tile for tile in tiles):
        parser.error(f"--tiles = {' '.join(map(str, tiles))}: expected divisors of N = {size[0]}")
    if options.chip:
        if not tpu_chips.has_libtpu():
            parser.error(f"--chip = {options.chip}: expected libtpu to be installed; `make .venv/.tpu` installs it")
        tpu_chips.with_environment()
        for_tpu(options.chip, size, tiles)
    else:
        on_cpu(size, tiles, options.turns)
