"""Cost of checkpoint digests: time to save and restore with digests, and throughput of hash functions.

python benchmarks/checkpoint_digests.py [MEGABYTES]
"""

import hashlib
import os
import sys
import tempfile
import time
import zlib
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp

from rljax.training.checkpoint import digests
from rljax.training.checkpoint.checkpoints import Checkpoints

HASHES = {"sha256": hashlib.sha256, "blake2b": hashlib.blake2b, "crc32": zlib.crc32}


def random_tree(megabytes: int):
    """Arrays of 16 MB each; random, since Orbax compresses what it writes."""
    keys = jax.random.split(jax.random.key(0), megabytes // 16)
    return {"params": {str(i): jax.random.normal(key, (2000, 2000), jnp.float32) for i, key in enumerate(keys)}}


def timed(function, *arguments, clock=time.perf_counter) -> float:
    started = clock()
    function(*arguments)
    return clock() - started


def save(folder: Path, tree) -> tuple[float, float, float]:
    """Seconds until `save` returns, until the checkpoint is finished, and spent on digests."""
    within, write = [], digests._write

    def timed_write(*arguments):
        within.append(timed(write, *arguments))

    with mock.patch.object(digests, "_write", timed_write):
        checkpoints = Checkpoints(folder)
        started = time.perf_counter()
        checkpoints.save(0, tree, {})
        returned = time.perf_counter() - started
        checkpoints.close()
    return returned, time.perf_counter() - started, sum(within)


def restore(folder: Path, tree) -> tuple[float, float]:
    """Seconds to restore, including the check of the digests, and seconds of the check alone."""
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    checkpoints = Checkpoints(folder, read_only=True)
    check = timed(digests.find_fault, folder / "0")
    return timed(checkpoints.restore, lambda record: target, print), check


def main() -> None:

    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    data = os.urandom(1 << 28)
    for name, function in HASHES.items():
        seconds = min(timed(function, data, clock=time.thread_time) for _ in range(3))
        print(f"{name}: {len(data) / 1e6 / seconds:.0f} MB per CPU second")
    tree = jax.block_until_ready(random_tree(megabytes))
    with tempfile.TemporaryDirectory() as folder:
        for i in range(3):
            path = Path(folder) / str(i)
            returned, finished, hashing = save(path, tree)
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
            whole, check = restore(path, tree)
            print(f"{size:.0f} MB: save returned after {returned:.2f} s and finished after {finished:.2f} s, including "
                  f"{hashing:.2f} s of digests ({size / hashing:.0f} MB/s); restore took {whole:.2f} s, including "
                  f"{check:.2f} s of checks ({size / check:.0f} MB/s)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
