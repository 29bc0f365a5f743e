"""Estimated time of the token_stats kernels on each TPU generation, from the compiler's static schedules.

    python benchmarks/tpu_static.py [--size N D V] [--search] [WORD ...]  rows that contain all words, such as v5e sums

`--search` tries all tiles instead of the defaults. The compiler unrolls the grid for its estimate, so only small grids
are feasible: for r × c tiles the cycles are α + β·r + γ·c + δ·r·c, which four small grids determine. Data-dependent
branches count as taken, so the benchmark compiles kernels that compute every tile and clear no rows. The time is the
larger of the cycles and the kernel's bytes at full HBM bandwidth. The floor is the matrix products at the peak rate.

Nothing here runs on a TPU. The estimate ranks tiles, but is not a measurement: it excludes HBM latency and contention,
stalls on single transfers and the clock under load.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

import tpu_cases
import tpu_profile
from tpu_chips import CHIPS, ENVIRONMENT, Chip, has_libtpu
from tpu_kernels import KERNELS, Kernel

from pallas_kernels._vocabulary.types import Tile
from pallas_kernels.token_stats.tpu.generations import GENERATIONS

COMPILERS = 2  # concurrent compilations
OUTER, INNER = (1, 2), (2, 3)  # tiles per grid axis, on each core for the outer axis
SIDES = (256, 512, 1024)
HEAD = ("kernel", "chip", "tile", "cycles per step", "MXU %", "spills per step", "ms", "limit", "floor / time %")


class Estimate(NamedTuple):
    cycles: float  # per grid step
    loop: tpu_profile.Loop
    seconds: float
    limit: str  # the larger of the two times: "cycles" or "bytes"
    share: float  # floor / seconds


def grids(kernel: Kernel, chip: Chip) -> list[tuple[int, int]]:
    """(tiles of tokens, tiles of the vocabulary) of four small grids, the largest last."""
    outer = [chip.cores * tiles for tiles in OUTER]
    return list(product(outer, INNER) if kernel.outer == "tokens" else product(INNER, outer))


def whole(cycles: dict[tuple[int, int], float], rows: float, columns: float) -> float:
    """Extrapolates the cycles of four small grids bilinearly to a grid of rows × columns."""
    (low, high), (few, many) = (sorted({grid[axis] for grid in cycles}) for axis in (0, 1))
    r, c = (rows - low) / (high - low), (columns - few) / (many - few)
    return (
        (1 - r) * (1 - c) * cycles[low, few]
        + (1 - r) * c * cycles[low, many]
        + r * (1 - c) * cycles[high, few]
        + r * c * cycles[high, many]
    )


def estimate(kernel: Kernel, chip: Chip, tile: Tile, size, cycles, loop) -> Estimate:
    n, d, v = size
    rows, columns = -(-n // tile.tokens), -(-v // tile.vocabulary)
    total = whole(cycles, rows, columns)
    seconds = {
        "cycles": total / chip.clock,
        "bytes": kernel.traffic(tile, rows * tile.tokens, d, columns * tile.vocabulary) / chip.bandwidth,
    }
    limit = max(seconds, key=lambda name: seconds[name])
    return Estimate(
        total / (rows * columns), loop, seconds[limit], limit, floor(kernel.products, chip, size) / seconds[limit]
    )


def floor(products: int, chip: Chip, size) -> float:
    """Seconds of `products` matrix products of 2·N·D·V at the peak rate."""
    n, d, v = size
    return 2 * products * n * d * v / chip.flops


class RefusedError(Exception):
    """The compiler rejected a tile."""


def profile(name: str, chip: Chip, tile: Tile, d: int, grid) -> tuple[int, tpu_profile.Loop]:
    """Cycles of a small grid and the kernel's main loop, from a subprocess, since libtpu reads its flags only once."""
    numbers = (*tile, d, *grid)
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | ENVIRONMENT | {"LIBTPU_INIT_ARGS": tpu_profile.flags(Path(folder))}
        script = str(Path(__file__).with_name("tpu_kernels.py"))
        command = [sys.executable, script, name, chip.name, *map(str, numbers)]
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
        # On tpu7x, libtpu 0.0.42 aborts after it has written all profiles, so the exit status is ignored.
        try:
            (loop,) = tpu_profile.main_loops(Path(folder))
            return tpu_profile.estimated_cycles(Path(folder), "token_stats_"), loop
        except ValueError as error:
            said = [line for line in done.stderr.splitlines() if "Error" in line or "RESOURCE_EXHAUSTED" in line]
            raise RefusedError(said[-1][:300] if said else str(error)) from None


def row(name: str, chip: Chip, tile: Tile, found: Estimate | RefusedError) -> str:
    cells = [name, chip.name, in_words(tile)]
    if isinstance(found, RefusedError):
        cells += [f"rejected: {found}", *[""] * 5]
    else:
        cells += [f"{found.cycles:.0f}", f"{100 * found.loop.mxu:.0f}", f"{found.loop.spills}"]
        cells += [f"{1e3 * found.seconds:.1f}", found.limit, f"{100 * found.share:.1f}"]
    return f"| {' | '.join(cells)} |"


def in_words(tile: Tile) -> str:
    return "x".join(map(str, tile))


def search(name: str, chip: Chip, tiles: Iterable[Tile], size, profile=profile) -> dict[Tile, float]:
    """Prints a line for each tile and returns the seconds of the tiles that the compiler accepts."""
    seconds = {}
    with ThreadPoolExecutor(COMPILERS) as pool:
        small = grids(KERNELS[name], chip)
        jobs = {tile: {grid: pool.submit(profile, name, chip, tile, size[1], grid) for grid in small} for tile in tiles}
        for tile, by_grid in jobs.items():
            try:
                found = {grid: job.result() for grid, job in by_grid.items()}
                cycles = {grid: cycles for grid, (cycles, _) in found.items()}
                result = estimate(KERNELS[name], chip, tile, size, cycles, found[small[-1]][1])
                seconds[tile] = result.seconds
            except RefusedError as refused:
                result = refused
            print(row(name, chip, tile, result), flush=True)
    return seconds


def own_tile(name: str, chip: Chip) -> Tile:
    return getattr(GENERATIONS[chip.name.removeprefix("tpu")], name)


def summary(chip: Chip, best: dict[str, tuple[Tile, float]], size) -> str:
    """A line on the best tile of each kernel and their share of the peak rate."""
    tiles = ", ".join(f"{name} {in_words(tile)}" for name, (tile, _) in best.items())
    forward, both = best["sums"][1], sum(seconds for _, seconds in best.values())
    shares = f"forward {100 * floor(1, chip, size) / forward:.1f} %"
    if best.keys() == KERNELS.keys():
        shares += f", with gradients {100 * floor(4, chip, size) / both:.1f} % of the peak rate for 8·N·D·V"
    return f"{chip.name}: {tiles}: {shares}"


def main(arguments: list[str]) -> int:
    if not has_libtpu():
        print("tpu-static: nothing was compiled, since libtpu is not installed; `make .venv/.tpu` installs it")
        return 0
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", nargs=3, type=int, default=tpu_cases.SIZES[0], metavar=("N", "D", "V"))
    parser.add_argument("--search", action="store_true", help="all tiles, not only the defaults")
    parser.add_argument("words", nargs="*", metavar="WORD", help="kernel, chip or tile (such as 512x512) of the rows")
    options = parser.parse_args(arguments)
    print(f"N, D, V = {', '.join(map(str, options.size))}\n\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    chosen, best = set(options.words), {chip: {} for chip in CHIPS.values()}
    for chip, name in product(CHIPS.values(), KERNELS):
        tiles = [Tile(*sides) for sides in product(SIDES, repeat=2)] if options.search else [own_tile(name, chip)]
        tiles = [tile for tile in tiles if chosen <= {name, chip.name, in_words(tile)}]
        seconds = search(name, chip, tiles, options.size)
        if seconds:
            tile = min(seconds, key=lambda tile: seconds[tile])
            best[chip][name] = tile, seconds[tile]
    found = [summary(chip, by_kernel, options.size) for chip, by_kernel in best.items() if "sums" in by_kernel]
    print("", *found, sep="\n")
    return 0 if any(best.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
