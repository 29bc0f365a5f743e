"""Dense and chunked token_stats on a CPU: CPU time and XLA's temporaries, forward and with gradients.

    python benchmarks/token_stats.py [--sizes N,D,V ...] [--dtypes float32 bfloat16] [--turns 5]

`dense` is the usual program: logits, a log-softmax and three reductions. Times are measured as in `objectives.py` and
printed relative to dense. Two peers, which compute only the log-probability, are timed if they are installed: the
`chunked_xla` of tokamax (0.0.17, Python 3.12: `pip install tokamax==0.0.17`), and the `torch_compile` form of Cut
Cross-Entropy (25.1.1, Python 3.11: `pip install torch==2.13.0 cut-cross-entropy`), which stores the logits for its
gradients. For `--device gpu` see `token_stats_gpu.py`.
"""

import argparse
import time
from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
from token_stats_peers import cut_cross_entropy_on_cpu

from pallas_kernels import TokenStats, token_stats

SIZES = {  # (N, D, V): tiles to time besides the default tile
    (2048, 512, 32768): [(2048, 2048)],
    (512, 1024, 151936): [(512, 4096)],  # Qwen3-0.6B's head
    (2048, 256, 32768): [],
    (16384, 128, 64): [],  # the default recipe's head
}
PASSES = "forward", "forward + backward"


def dense(hidden, unembedding, targets) -> TokenStats:
    x = jnp.einsum("nd,vd->nv", hidden, unembedding, preferred_element_type=jnp.float32)
    log_pi = jax.nn.log_softmax(x, axis=-1)
    pi = jnp.exp(log_pi)
    logp = jnp.take_along_axis(log_pi, targets[:, None], axis=-1)[:, 0]
    return TokenStats(logp, -jnp.sum(pi * log_pi, axis=-1), 1 - 2 * jnp.exp(logp) + jnp.sum(pi * pi, axis=-1))


def tokamax_logp(hidden, unembedding, targets):
    import tokamax  # pyright: ignore[reportMissingImports]

    loss = tokamax.linear_softmax_cross_entropy_loss
    logp = -loss(hidden, targets, unembedding.T, reduction=None, implementation="chunked_xla")
    return TokenStats(logp, jnp.zeros_like(logp), jnp.zeros_like(logp))


def forward(function, names):
    def outputs(*inputs):
        stats = function(*inputs)
        return [getattr(stats, name) for name in names]

    return outputs


def with_gradients(function, names):
    """A function that returns the gradients in hidden and unembedding of the sum of the outputs in `names`."""
    outputs = forward(function, names)
    return jax.grad(lambda *inputs: sum(jnp.sum(x) for x in outputs(*inputs)), (0, 1))


def inputs(n, d, v, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (n, d), dtype)
    unembedding = jax.random.normal(keys[1], (v, d), dtype) / jnp.asarray(d**0.5, dtype)
    return hidden, unembedding, jax.random.randint(keys[2], (n,), 0, v)


def temporaries(program) -> float:
    analysis = program.memory_analysis()
    assert analysis is not None, "this backend has no memory analysis"
    return analysis.temp_size_in_bytes / 1e6


def seconds(programs, arguments, turns):
    """The least CPU seconds of each program over interleaved turns, after a warm-up turn."""
    taken = {name: [] for name in programs}
    for _ in range(turns + 1):
        for name, program in programs.items():
            start = time.process_time()
            jax.block_until_ready(program(*arguments))
            taken[name].append(time.process_time() - start)
    return {name: min(times[1:]) for name, times in taken.items()}


def compare(functions, names, size, dtype, turns):
    """Prints a line for each function and pass; times are relative to the first function."""
    n, d, v = size
    arguments = inputs(n, d, v, dtype)
    for label, transform in zip(PASSES, (forward, with_gradients), strict=True):
        made = {name: jax.jit(transform(f, names)).lower(*arguments).compile() for name, f in functions.items()}
        best = seconds(made, arguments, turns)
        base = next(iter(best))
        for name, program in made.items():
            of = f"N,D,V {size} {jnp.dtype(dtype).name} {'+'.join(names)} {label}"
            ratio, megabytes = best[name] / best[base], temporaries(program)
            cost = f"{ratio:.2f} x {base} ({best[name]:.2f} s), temporaries {megabytes:.1f} MB"
            print(f"{of}: {name} {cost}", flush=True)


def chunked(tile=None):
    return partial(token_stats, implementation="chunked", tile=tile)


def main(sizes, dtypes, turns):
    for size in sizes:
        tiles = {f"chunked, tile {tile}": chunked(tile) for tile in [None, *SIZES.get(size, [])]}
        for dtype in dtypes:
            compare({"dense": dense, **tiles}, TokenStats._fields, size, dtype, turns)
    missing = [name for name in ("tokamax", "cut_cross_entropy") if find_spec(name) is None]
    print("".join(f"{name} is not installed and was not timed\n" for name in missing), end="")
    for dtype in dtypes:
        if "tokamax" not in missing:
            theirs = {"tokamax chunked_xla": tokamax_logp, "chunked": chunked()}
            compare(theirs, ("logp",), (2048, 256, 32768), dtype, turns)
        if "cut_cross_entropy" not in missing:
            beside_cut_cross_entropy((2048, 512, 32768), dtype, turns)


def beside_cut_cross_entropy(size, dtype, turns):
    """Times dense and chunked token_stats with all three outputs, and Cut Cross-Entropy's log-probability."""
    n, d, v = size
    arguments = inputs(n, d, v, dtype)
    theirs = cut_cross_entropy_on_cpu(dtype, *size)
    for label, transform, their in zip(PASSES, (forward, with_gradients), theirs, strict=True):
        forms = {"dense": dense, "chunked": chunked()}
        made = {name: partial(jax.jit(transform(form, TokenStats._fields)), *arguments) for name, form in forms.items()}
        best = seconds(made | {"cut_cross_entropy torch_compile, logp": their}, (), turns)
        for name, taken in best.items():
            ratio = taken / best["dense"]
            print(f"N,D,V {size} {dtype} {label}: {name} {ratio:.2f} x dense ({taken:.2f} s)", flush=True)


def size(text: str) -> tuple[int, ...]:
    sizes = tuple(map(int, text.split(",")))
    if len(sizes) != 3 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected N,D,V, three positive integers")
    return sizes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--sizes", nargs="+", type=size, metavar="N,D,V")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="CPU only")
    parser.add_argument("--turns", type=int, default=5, help="CPU only")
    parser.add_argument("--json", help="GPU only: file for the results")
    parser.add_argument("--minutes", type=float, default=7, help="GPU only: start no candidate after this time")
    options = parser.parse_args()
    if options.device == "gpu":
        import token_stats_gpu

        token_stats_gpu.main(options.sizes or token_stats_gpu.SIZES, options.json, options.minutes)
    else:
        main(options.sizes or SIZES, options.dtypes, options.turns)
