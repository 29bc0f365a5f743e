"""CPU times and errors of segmented_cumsum and of other algorithms for the same sums; the allowed error is 1e-6.

    python benchmarks/segmented_cumsum.py [B T]

Times are measured as in `objectives.py`. An error is the largest |y − exact| / Σ|x| of forward and reverse sums, with
exact sums in float64, for four kinds of rows: normal, uniform, constant 0.1, and "late", where a second sequence starts
halfway, after a sequence of values up to 1e6.
"""

import os
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels import segmented_cumsum
from pallas_kernels.segmented_cumsum import chunked
from pallas_kernels.segmented_cumsum._monoids import SUM

SIZES = [(512, 4096), (8, 32768), (1, 131072)]
KINDS = ("normal", "uniform", "constant", "late")
PLAIN = SUM._replace(absorb=lambda total, error, x: (total + x, error))


def forms() -> dict[str, Callable]:
    """Functions `(x, segment_ids, reverse) -> y` by name; the first is the baseline of the times."""

    def by(form, operation):
        return lambda x, ids, reverse: form(operation, reverse, False, x, ids)

    return {
        "plain loop": by(chunked.in_one_loop, PLAIN),
        "compensated loop": by(chunked.in_one_loop, SUM),
        "√T chunks, plain": by(chunked.in_chunks, PLAIN),
        "√T chunks, compensated": by(chunked.in_chunks, SUM),
        "associative_scan": tree,
        "segmented_cumsum": lambda x, ids, reverse: segmented_cumsum(x, ids, reverse=reverse),
    }


def tree(x, ids, reverse):
    def combine(earlier, later):
        (a, i), (b, j) = earlier, later
        return jnp.where(j == 0, a, jnp.where(i == j, a + b, b)), jnp.where(j == 0, i, j)

    return lax.associative_scan(combine, (x, ids), axis=x.ndim - 1, reverse=reverse)[0]


def rows(kind: str, b: int, t: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = np.ones((b, t), np.int32)
    if kind == "late":
        ids[:, t // 2 :] = 2
        return np.where(ids == 1, 1e6, 1).astype(np.float32) * rng.random((b, t), np.float32), ids
    x = {"normal": rng.standard_normal, "uniform": rng.random}.get(kind, lambda shape: np.full(shape, 0.1))((b, t))
    return x.astype(np.float32), ids


def exact(x, ids, reverse):
    if reverse:
        return exact(x[:, ::-1], ids[:, ::-1], False)[:, ::-1]
    first, second = (np.cumsum(np.where(ids == i, x, 0), axis=-1, dtype=np.float64) for i in (1, 2))
    return np.where(ids == 1, first, second)


def error(step: Callable, kind: str, b: int, t: int) -> float:
    x, ids = rows(kind, b, t)

    def relative(reverse):
        difference = np.asarray(step(x, ids, reverse), np.float64) - exact(x, ids, reverse)
        return np.max(np.abs(difference) / exact(np.abs(x), ids, reverse))

    return max(relative(False), relative(True))


def compare(b: int, t: int, turns: int = 7) -> dict[str, float]:
    """Prints a line for each form and returns the times by name."""
    x, ids = map(jnp.asarray, rows("normal", b, t))
    steps = {name: jax.jit(form, static_argnums=2) for name, form in forms().items()}
    seconds = {name: [] for name in steps}
    for _ in range(turns + 1):  # the first turn warms up
        for name, step in steps.items():
            start = time.process_time()
            jax.block_until_ready(step(x, ids, False))
            seconds[name].append(time.process_time() - start)
    best = {name: min(times[1:]) for name, times in seconds.items()}
    print(f"float32 [{b}, {t}], int32 ids; errors for rows of kind {', '.join(KINDS)}")
    for name, least in best.items():
        errors = " ".join(f"{error(steps[name], kind, min(b, 8), t):.0e}" for kind in KINDS)
        ratio = least / best["plain loop"]
        print(f"  {name:22} {least * 1e3:6.1f} ms, {ratio:.2f} x plain loop; errors {errors}", flush=True)
    return best


def main():
    sizes = [tuple(map(int, sys.argv[1:3]))] if len(sys.argv) > 2 else SIZES
    for b, t in sizes:
        compare(b, t)


if __name__ == "__main__":
    if "GLIBC_TUNABLES" not in os.environ:  # huge pages, as in objectives.py
        os.execve(
            sys.executable, [sys.executable, *sys.argv], os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        )
    main()
