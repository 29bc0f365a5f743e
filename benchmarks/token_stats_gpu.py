"""token_stats on a GPU: checks correctness, then times each candidate, the dense program and installed peers.

    python benchmarks/token_stats.py --device gpu [--sizes N,D,V ...] [--json FILE] [--minutes M]

This benchmark has never run on a GPU. Inputs are bfloat16, and the loss uses all three outputs. TFLOP/s count 2·N·D·V
operations forward and 8·N·D·V with gradients, even if a program executes more. A time is the median after two warm-up
runs. Memory is the compiler's temporaries, and the rise of the device's peak if a candidate needs more than all
candidates before it. A failed candidate's line holds its error. No candidate starts after M minutes.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from token_stats_peers import peers

from pallas_kernels import token_stats
from pallas_kernels._vocabulary.types import Tile
from pallas_kernels._vocabulary.vjp import Inputs, Passes, Plan, rule
from pallas_kernels.token_stats import TokenStats
from pallas_kernels.token_stats.gpu import Launch, gradients, sums

SIZES = [(8192, 4096, 151936), (4096, 2048, 151936)]
SMALL = [(128, 64, 512), (300, 200, 1007)]  # for correctness: one that tiles divide, one that they do not
TILES = [(8192, 16000), (8192, 4096), (4096, 16000), (2048, 37984), (1024, 8192), (1024, 151936)]
LAUNCHES = [
    (Tile(128, 256), Launch()),
    (Tile(128, 256), Launch(stages=4)),
    (Tile(256, 128), Launch()),
    (Tile(256, 128), Launch(stages=4)),
    (Tile(128, 128), Launch(stages=4)),
    (Tile(128, 128), Launch(warps=4, stages=3)),
]
BOUNDS = {"logp": 1e-4, "entropy": 1e-4, "proxy": 1e-4, "hidden": 1e-2, "unembedding": 1e-2}


class Candidate(NamedTuple):
    """A function `(hidden, unembedding, targets) -> TokenStats` to compile with jax, or a peer with its own inputs.

    A peer is `(N, D, V) -> (forward, step)`, two functions without arguments that return when the device has finished.
    """

    name: str
    run: Callable[..., Any]
    with_gradients: bool = True
    peer: bool = False


def kernel(tile: Tile | None, launch: Launch) -> Callable[..., TokenStats]:
    def run(hidden, unembedding, targets):
        passes = Passes(partial(sums, launch=launch), gradients)
        arrays = Inputs(hidden, unembedding, None, targets, jnp.float32(1), None)
        return rule(Plan(passes, tile, unembedding.shape[0], None, None))(*arrays)

    return run


def candidates(tiles: Iterable = TILES, launches: Iterable = LAUNCHES) -> list[Candidate]:
    """All candidates; the most important (default, kernel, dense) come first, in case time runs out."""
    (tile, launch), *others = launches
    return [
        Candidate("default", token_stats),
        Candidate(f"kernel {_launched(tile, launch)}", kernel(tile, launch)),
        Candidate("dense", partial(token_stats, implementation="reference")),
        *(Candidate(f"tiles {t[0]} x {t[1]}", partial(token_stats, tile=t, implementation="chunked")) for t in tiles),
        *(Candidate(f"kernel {_launched(t, by)}", kernel(t, by), with_gradients=False) for t, by in others),
    ]


def _launched(tile: Tile, launch: Launch) -> str:
    return f"{tile.tokens} x {tile.vocabulary}, {launch.warps} warps, {launch.stages} stages"


def inputs(n, d, v, dtype=jnp.bfloat16):
    """(hidden, unembedding, targets); logits have about unit variance."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (n, d), dtype)
    unembedding = jax.random.normal(keys[1], (v, d), dtype) / jnp.asarray(d**0.5, dtype)
    return hidden, unembedding, jax.random.randint(keys[2], (n,), 0, v, jnp.int32)


def step(run):
    """A function that returns (gradients, TokenStats) of a loss that weights every token and output differently."""

    def loss(hidden, unembedding, targets):
        stats = run(hidden, unembedding, targets)
        weights = jnp.cos(jnp.arange(3 * targets.size, dtype=jnp.float32)).reshape(3, -1)
        return sum(jnp.sum(w.astype(x.dtype) * x) for w, x in zip(weights, stats, strict=True)), stats

    return jax.grad(loss, (0, 1), has_aux=True)


@cache
def truth(n, d, v, dtype):
    """Outputs and gradients of the dense program in float64, for inputs rounded to the dtype."""
    *arrays, targets = inputs(n, d, v, dtype)
    with jax.enable_x64(True):
        dense = step(partial(token_stats, implementation="reference"))
        found, stats = jax.jit(dense)(*(x.astype(jnp.float64) for x in arrays), targets)
        return [np.asarray(x) for x in (*stats, *found)]


def errors(candidate: Candidate, size: tuple[int, int, int], dtype) -> dict[str, float]:
    """‖found − true‖/‖true‖ of the outputs and, if the candidate has them, of the gradients."""
    with jax.default_matmul_precision("highest"):
        if candidate.with_gradients:
            gradients, stats = jax.jit(step(candidate.run))(*inputs(*size, dtype))
        else:
            gradients, stats = (), jax.jit(candidate.run)(*inputs(*size, dtype))
    pairs = zip(BOUNDS, (*stats, *gradients), truth(*size, dtype), strict=False)
    return {name: float(np.linalg.norm(np.asarray(f, float) - t) / np.linalg.norm(t)) for name, f, t in pairs}


def check(candidate: Candidate, sizes=SMALL) -> dict[str, Any]:
    """The largest errors over all sizes in bfloat16 and the last size in float32; whether they are within BOUNDS."""
    cases = [(size, jnp.bfloat16) for size in sizes] + [(sizes[-1], jnp.float32)] * candidate.with_gradients
    found = [errors(candidate, *case) for case in cases]
    worst = {name: float(np.max([error[name] for error in found])) for name in found[0]}  # np.max propagates NaN
    return {"errors": worst, "right": all(error <= BOUNDS[name] for name, error in worst.items())}


def seconds(run: Callable[[], Any], budget: float) -> float:
    """The median time of at least 3 runs, and of up to 50 within the budget in seconds."""
    for _ in range(2):
        run()
    times = []
    while len(times) < 3 or (len(times) < 50 and sum(times) < budget):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def timed(function, arrays, budget: float) -> dict[str, Any]:
    """Milliseconds, MiB of the compiler's temporaries, and the rise of the device's peak memory in MiB (or None)."""
    device = jax.devices()[0]
    compiled = jax.jit(function).lower(*arrays).compile()
    before = device.memory_stats() or {}
    taken = seconds(lambda: jax.block_until_ready(compiled(*arrays)), budget)
    after = device.memory_stats() or {}
    analysis, rise = compiled.memory_analysis(), None
    assert analysis is not None, "this backend has no memory analysis"
    if after.get("peak_bytes_in_use", 0) > before.get("peak_bytes_in_use", 0):
        rise = (after["peak_bytes_in_use"] - before["bytes_in_use"] - analysis.output_size_in_bytes) / 2**20
    return {"ms": 1e3 * taken, "temporaries_mib": analysis.temp_size_in_bytes / 2**20, "peak_mib": rise}


def measured(candidate: Candidate, size, budget: float = 1.0) -> dict[str, Any]:
    n, d, v = size
    if candidate.peer:
        times = [{"ms": 1e3 * seconds(run, budget)} for run in candidate.run(*size)]
    else:
        arrays = inputs(*size)
        programs = [candidate.run, *([step(candidate.run)] if candidate.with_gradients else [])]
        times = [timed(program, arrays, budget) for program in programs]
    for row, products in zip(times, (2, 8), strict=False):
        row["tflops"] = products * n * d * v / row["ms"] / 1e9
    return dict(zip(("forward", "with_gradients"), times, strict=False))


def report(sizes, everything: list[Candidate], minutes: float, path: str | None = None, small=SMALL) -> list[dict]:
    """Prints a line for each candidate and size, and writes all rows to the file `path`."""
    end, rows = time.monotonic() + 60 * minutes, []
    device = jax.devices()[0].device_kind
    first, *others = sizes
    tasks = [(candidate, size) for candidate in everything for size in (None, first) if size or not candidate.peer]
    tasks += [(candidate, size) for size in others for candidate in everything]
    print(f"{device}, jax {jax.__version__}")
    for candidate, size in tasks:
        row: dict[str, Any] = {"device": device, "candidate": candidate.name, "size": size}
        try:
            if time.monotonic() > end:
                row["error"] = f"not started within {minutes:g} minutes"
            else:
                row |= check(candidate, small) if size is None else measured(candidate, size)
        except Exception as error:  # go on with the other candidates
            row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        rows.append(row)
        print(_line(row), flush=True)
        if path is not None:
            with open(path, "w", encoding="utf-8") as file:
                json.dump(rows, file, indent=1)
    return rows


def _line(row) -> str:
    where = "small sizes" if row["size"] is None else "N {} D {} V {}".format(*row["size"])
    if "error" in row:
        return f"{where} | {row['candidate']} | {row['error']}"
    if "errors" in row:
        worst = " ".join(f"{name} {error:.1e}" for name, error in row["errors"].items())
        return f"{where} | {row['candidate']} | {'correct' if row['right'] else 'WRONG'} | relative errors {worst}"
    parts = [f"{where} | {row['candidate']}"]
    for name in ("forward", "with_gradients"):
        if name in row:
            found = row[name]
            parts.append(f"{name} {found['ms']:.2f} ms {found['tflops']:.0f} TFLOP/s")
            parts += [
                f"{found[m]:.0f} MiB {m[:-4]}" for m in ("temporaries_mib", "peak_mib") if found.get(m) is not None
            ]
    return " | ".join(parts)


def main(sizes, path: str | None, minutes: float) -> None:
    """Runs all candidates on this machine's GPU. jax does not preallocate its memory, so that peers have room."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if jax.default_backend() != "gpu":
        raise SystemExit(f"--device = gpu: expected a GPU, but jax's backend is {jax.default_backend()}")
    others = [Candidate(name, make, peer=True) for name, make in peers().items()]
    report(sizes, [*candidates(), *others], minutes, path)
