"""Dense against chunked token statistics, forward and gradients: CPU time and XLA's temporaries.

    python benchmarks/token_stats.py [N D V] [--device cpu]

The two are run in turns within one process, so that a busy machine slows both; the least time of each counts.
`--device gpu` is told of in `token_stats_gpu`.
"""

import argparse
import time

import jax
import jax.numpy as jnp

from pallas_kernels import token_stats

SIZES = [(16384, 128, 64), (2048, 256, 32768)]  # the default recipe's, and a small model with a large vocabulary


def compiled_step(implementation, hidden, unembedding, targets):
    """Gradients of hidden and unembedding for a loss that uses all three outputs."""

    def loss(hidden, unembedding):
        stats = token_stats(hidden, unembedding, targets, implementation=implementation)
        return jnp.sum(stats.logp) + jnp.sum(stats.entropy) + jnp.sum(stats.proxy)

    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(hidden, unembedding).compile()


def _temporaries(step):
    """Bytes that a compiled program allocates beside its arguments and results."""
    analysis = step.memory_analysis()
    assert analysis is not None, "this backend tells nothing of its memory"
    return analysis.temp_size_in_bytes


def compare(n, d, v, dtype, turns=3):
    """Prints one line for the sizes [N, D] and [V, D]."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (n, d), dtype)
    unembedding = jax.random.normal(keys[1], (v, d), dtype) / jnp.asarray(d**0.5, dtype)
    targets = jax.random.randint(keys[2], (n,), 0, v)
    steps = {name: compiled_step(name, hidden, unembedding, targets) for name in ("reference", "chunked")}
    seconds = {name: [] for name in steps}
    for _ in range(turns + 1):  # the first turn warms up
        for name, step in steps.items():
            start = time.process_time()
            jax.block_until_ready(step(hidden, unembedding))
            seconds[name].append(time.process_time() - start)
    best = {name: min(times[1:]) for name, times in seconds.items()}
    mebibytes = {name: _temporaries(step) / 2**20 for name, step in steps.items()}
    print(
        f"N {n} D {d} V {v} {jnp.dtype(dtype).name}: CPU s dense {best['reference']:.3f} chunked {best['chunked']:.3f} "
        f"ratio {best['chunked'] / best['reference']:.2f}; temporaries MiB dense {mebibytes['reference']:.1f} "
        f"chunked {mebibytes['chunked']:.1f} ratio {mebibytes['chunked'] / mebibytes['reference']:.3f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description="Dense against chunked token statistics")
    parser.add_argument("sizes", nargs="*", type=int, metavar="N D V", help="else those of a list")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--json", help="where a GPU's results go")
    parser.add_argument("--minutes", type=float, default=7, help="after which no candidate is begun on a GPU")
    arguments = parser.parse_args()
    if len(arguments.sizes) not in (0, 3):
        parser.error(f"sizes are {arguments.sizes}; they should be N, D and V")
    sizes = [tuple(arguments.sizes)] if arguments.sizes else None
    if arguments.device == "gpu":
        import token_stats_gpu

        return token_stats_gpu.main(sizes or token_stats_gpu.SIZES, arguments.json, arguments.minutes)
    for n, d, v in sizes or SIZES:
        for dtype in (jnp.float32, jnp.bfloat16):
            compare(n, d, v, dtype)


if __name__ == "__main__":
    main()
