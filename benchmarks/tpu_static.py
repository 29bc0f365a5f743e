"""How long the token_stats kernels should take on each TPU generation, by the compiler's own estimate, tile by tile.

    python benchmarks/tpu_static.py [--size N D V] [WORD ...]     only rows that hold all the words: v5e forward 512x512

The compiler's estimate unrolls the grid, so that only small grids can be had: of r and c tiles it is α + β·r + γ·c +
δ·r·c, which four of them determine, and which then gives the whole grid's (tried for 6 by 6 tiles, right to the cycle,
and for 8 by 3, .3 % off).  The time is that or what the kernel's bytes take at the full bandwidth, whichever is longer;
the floor is the matrix products' at the peak rate.

What this cannot see: the latency of HBM, contention for it, a transfer that one tile waits for while the whole would
fit, and the clock under load.  It ranks tiles; only a TPU tells the time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import tpu_cases
import tpu_profile
from tpu_chips import CHIPS, ENVIRONMENT, Chip, compile_for, has_libtpu

from pallas_kernels import token_stats

COMPILERS = 2  # at a time
GRIDS = list(product((2, 4), repeat=2))  # even: the two cores of a v5p share the rows
TILES = [(256, 512), (512, 512), (512, 1024), (1024, 512), (1024, 1024)]
HEAD = ("program", "chip", "tile", "cycles a step", "MXU %", "spills a step", "ms", "limit", "share of floor %")


class Program(NamedTuple):
    """What is timed, for tokens and vocabulary of whole tiles."""

    build: Callable  # (tile, n, d, v) -> a function and the shapes of its arguments
    products: int  # matrix products of N·D·V that it cannot do without, at 2 operations each
    traffic: Callable  # (tile, n, d, v) -> bytes to and from HBM


class Estimate(NamedTuple):
    cycles: float  # a grid step
    loops: list[tpu_profile.Loop]
    seconds: float
    limit: str  # "cycles" or "bytes"
    share: float  # of the floor


def _build(gradients: bool, tile, n: int, d: int, v: int):
    stats = partial(token_stats, implementation="tpu", tile=tile)
    return (tpu_cases.backward if gradients else tpu_cases.forward)(stats), tpu_cases.inputs(n, d, v)


def _traffic(gradients: bool, tile, n: int, d: int, v: int) -> float:
    """In bfloat16: a tile of tokens stays while all of the weight passes by; for its gradient the other way round."""
    hidden, weight, rows, columns = 2 * n * d, 2 * v * d, n / tile[0], v / tile[1]
    forward = hidden + rows * weight
    return forward + gradients * (forward + hidden + columns * hidden + 2 * weight)


PROGRAMS = {
    "forward": Program(partial(_build, False), 1, partial(_traffic, False)),
    "forward+backward": Program(partial(_build, True), 4, partial(_traffic, True)),
}


def whole(cycles: dict[tuple[int, int], float], rows: float, columns: float) -> float:
    """The bilinear function of (rows, columns) through the four `GRIDS`, at the whole grid."""
    (low, high), (few, many) = (sorted({grid[axis] for grid in cycles}) for axis in (0, 1))
    r, c = (rows - low) / (high - low), (columns - few) / (many - few)
    return (
        (1 - r) * (1 - c) * cycles[low, few]
        + (1 - r) * c * cycles[low, many]
        + r * (1 - c) * cycles[high, few]
        + r * c * cycles[high, many]
    )


def estimate(program: Program, chip: Chip, tile, size, cycles, loops) -> Estimate:
    """Of the size [N, D, V], the tiles that cover it."""
    n, d, v = size
    rows, columns = -(-n // tile[0]), -(-v // tile[1])
    total = whole(cycles, rows, columns)
    seconds = {
        "cycles": total / chip.clock,
        "bytes": program.traffic(tile, rows * tile[0], d, columns * tile[1]) / chip.bandwidth,
    }
    limit = max(seconds, key=lambda name: seconds[name])
    floor = 2 * program.products * n * d * v / chip.flops
    return Estimate(total / (rows * columns), loops, seconds[limit], limit, floor / seconds[limit])


# ----------------------------------------------------------------------------------------------------- compilations


class RefusedError(Exception):
    """The compiler did not take the tile."""


def profile(name: str, chip: Chip, tile, d: int, grid) -> tuple[int, list[tpu_profile.Loop]]:
    """Cycles of a small grid, and the kernels' main loops, from a process of its own: libtpu reads its flags once."""
    numbers = (*tile, tile[0] * grid[0], d, tile[1] * grid[1])
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | ENVIRONMENT | {"LIBTPU_INIT_ARGS": tpu_profile.flags(Path(folder))}
        command = [sys.executable, sys.argv[0], "--compile", name, chip.name, *map(str, numbers)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        # On tpu7x libtpu 0.0.42 aborts after it has written the profiles of all operations: those count, not its end.
        try:
            return tpu_profile.estimated_cycles(Path(folder)), tpu_profile.main_loops(Path(folder))
        except ValueError as error:
            said = [line for line in done.stderr.splitlines() if "Error" in line or "RESOURCE_EXHAUSTED" in line]
            raise RefusedError(said[-1][:300] if said else str(error)) from None


def compile_one(name: str, chip: str, *numbers: str) -> None:
    """What the process above runs."""
    tokens, columns, n, d, v = map(int, numbers)
    compile_for(CHIPS[chip], *PROGRAMS[name].build((tokens, columns), n, d, v))


# ------------------------------------------------------------------------------------------------------------ table


def row(name: str, chip: Chip, tile, found: Estimate | RefusedError) -> str:
    cells = [name, chip.name, "x".join(map(str, tile))]
    if isinstance(found, RefusedError):
        cells += [f"refused: {found}", *[""] * 5]
    else:
        mxu, spills = (
            " / ".join(f"{100 * k.mxu:.0f}" for k in found.loops),
            " / ".join(f"{k.spills}" for k in found.loops),
        )
        cells += [f"{found.cycles:.0f}", mxu, spills, f"{1e3 * found.seconds:.1f}", found.limit]
        cells += [f"{100 * found.share:.1f}"]
    return f"| {' | '.join(cells)} |"


def search(name: str, chip: Chip, tiles: Iterable, size, profile=profile) -> tuple[int, int] | None:
    """Prints a line for each tile; the best of them, None where all are refused."""
    best = {}
    with ThreadPoolExecutor(COMPILERS) as pool:
        jobs = {tile: {grid: pool.submit(profile, name, chip, tile, size[1], grid) for grid in GRIDS} for tile in tiles}
        for tile, by_grid in jobs.items():
            try:
                found = {grid: job.result() for grid, job in by_grid.items()}
                cycles = {grid: cycles for grid, (cycles, _) in found.items()}
                result = estimate(PROGRAMS[name], chip, tile, size, cycles, found[GRIDS[-1]][1])
                best[tile] = result.seconds
            except RefusedError as refused:
                result = refused
            print(row(name, chip, tile, result), flush=True)
    return min(best, key=lambda tile: best[tile], default=None)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--compile"]:
        compile_one(*arguments[1:])
        return 0
    if not has_libtpu():
        print("tpu-static: nothing was compiled, libtpu is not installed; `make .venv/.tpu` installs it")
        return 0
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", nargs=3, type=int, default=tpu_cases.SIZES[0], metavar=("N", "D", "V"))
    parser.add_argument("words", nargs="*", metavar="WORD", help="of a row: a program, a chip, a tile such as 512x512")
    options = parser.parse_args(arguments)
    print(f"N, D, V = {', '.join(map(str, options.size))}\n\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    chosen, best = set(options.words), {}
    for name, chip in product(PROGRAMS, CHIPS.values()):
        tiles = [tile for tile in TILES if chosen <= {name, chip.name, "x".join(map(str, tile))}]
        if tiles:
            best[name, chip.name] = search(name, chip, tiles, options.size)
    for (name, chip), tile in best.items():
        print(f"\nbest of {name} on {chip}: {tile and 'x'.join(map(str, tile))}", end="")
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
