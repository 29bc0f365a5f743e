"""Programs compiled by `make tpu-compile`: kernels forward and backward, with memory bounds, and expected failures."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import segmented_cummin, segmented_cumsum, token_stats

SIZES = [(4096, 4096, 151936), (1000, 640, 50257)]  # N, D, V: a realistic size, and one that no tile divides
MORE_SIZES = [(8192, 2048, 32000), (512, 8192, 262144)]
FORWARD, BACKWARD = 8, 32  # bounds of temporaries in MiB; gradients are results and do not count


class Case(NamedTuple):
    """A program to compile: `build(devices)` returns a function and the shapes of its arguments."""

    program: str
    sizes: tuple[int, ...]
    build: Callable[[Any], tuple[Callable, tuple]]
    temporaries: float | None = None  # upper bound in MiB
    is_kernel: bool = True  # the program must contain a Pallas kernel
    fails_with: str | None = None  # pattern of the expected compiler error, None if it must compile


def cases(everything: bool) -> list[Case]:
    sizes = SIZES + MORE_SIZES * everything
    found = [case for size in sizes for case in _token_stats(size)] + [_with_everything()]
    found += [case for size in sizes if everything for case in _dense(size)]
    split = SIZES if everything else SIZES[1:]  # the large size takes 90 seconds longer
    found += [case for size in split for backward in (False, True) for case in _sharded(size, backward)]
    return found + _segmented_scans() + overflows()


def _token_stats(size) -> list[Case]:
    """Programs with V padded to a multiple of 128, and unpadded, which may cost one copy of the weight."""
    n, d, v = size
    found = []
    for padded in sorted({v, _to_128(v)}, reverse=True):
        stats = token_stats if padded == v else partial(token_stats, vocab_size=v)
        spent, label = _copy(size) if padded % 128 else 0, ", unpadded" if padded % 128 else ""
        arguments = inputs(n, d, padded)
        found += [
            Case(f"token_stats{label}", size, _given(forward(stats), *arguments), FORWARD + spent),
            Case(f"token_stats{label}, gradients", size, _given(backward(stats), *arguments), BACKWARD + spent),
        ]
    return found


def _with_everything() -> Case:
    n, _, v = size = SIZES[1]
    hidden, unembedding, targets, weights = (
        jax.ShapeDtypeStruct(x.shape, jnp.float32 if x.dtype == jnp.bfloat16 else x.dtype) for x in inputs(*size)
    )
    bias, mask = jax.ShapeDtypeStruct((v,), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.bool_)

    def loss(hidden, unembedding, bias, targets, mask, weights):
        stats = token_stats(hidden, unembedding, targets, bias=bias, mask=mask, softcap=30.0, temperature=0.7)
        return jnp.sum(weights * jnp.stack(tuple(stats)))

    arguments = hidden, unembedding, bias, targets, mask, weights
    program = "token_stats, float32, all arguments, gradients"
    return Case(program, size, _given(jax.grad(loss, (0, 1, 2)), *arguments), BACKWARD)


def _dense(size) -> list[Case]:
    stats, arguments = partial(token_stats, implementation="reference"), inputs(*size)
    return [
        Case("dense", size, _given(forward(stats), *arguments), is_kernel=False),
        Case("dense, gradients", size, _given(backward(stats), *arguments), is_kernel=False),
    ]


def _sharded(size, with_gradients: bool) -> list[Case]:
    """Programs with V sharded over four chips, V/4 not a multiple of 128: padded on each chip, and unpadded."""
    n, d, v = size
    quarter = -(-v // 4)
    assert quarter % 128
    limit, label = (BACKWARD, ", gradients") if with_gradients else (FORWARD, "")
    found = []
    for each, spent, how in ((_to_128(quarter), 0, ""), (quarter, _copy((n, d, quarter)), ", unpadded")):

        def build(devices, each=each):
            mesh = Mesh(np.asarray(devices[:4]), ("tensor",))
            stats = partial(token_stats, vocab_size=v, axis_name="tensor")
            split = jax.shard_map(
                lambda *x: tuple(stats(*x)), mesh=mesh, in_specs=(P(), P("tensor"), P()), out_specs=P()
            )
            specs = (P(), P("tensor"), P(), P())
            places = [NamedSharding(mesh, spec) for spec in specs]
            shapes = inputs(n, d, 4 * each)
            placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s) for x, s in zip(shapes, places, strict=True)]
            return (backward if with_gradients else forward)(split), tuple(placed)

        found.append(Case(f"token_stats over 4 chips{how}{label}", size, build, limit + spent))
    return found


def forward(stats: Callable) -> Callable:
    return lambda hidden, unembedding, targets, weights: tuple(stats(hidden, unembedding, targets))


def backward(stats: Callable) -> Callable:
    """A function that returns the gradients of Σ weights·(logp, entropy, proxy) in hidden states and unembedding."""

    def loss(hidden, unembedding, targets, weights):
        return jnp.sum(weights * jnp.stack(tuple(stats(hidden, unembedding, targets))))

    return jax.grad(loss, (0, 1))


def inputs(n: int, d: int, v: int) -> tuple:
    of = jax.ShapeDtypeStruct
    return of((n, d), jnp.bfloat16), of((v, d), jnp.bfloat16), of((n,), jnp.int32), of((3, n), jnp.float32)


def _to_128(size: int) -> int:
    return -(-size // 128) * 128


def _copy(size) -> float:
    """MiB of one copy of the unembedding in bfloat16, with V padded to a multiple of 128."""
    return 2 * size[1] * _to_128(size[2]) / 2**20


def _given(function: Callable, *arguments):
    return lambda devices: (function, arguments)


def _segmented_scans() -> list[Case]:
    """A large batch, the longest row and a batch smaller than a block, in both directions, with ids and a mask."""
    found = []
    for label, scan, size, ids in (
        ("segmented_cumsum", segmented_cumsum, (512, 4096), jnp.int32),
        ("segmented_cumsum, reverse", partial(segmented_cumsum, reverse=True, exclusive=True), (1, 131072), jnp.bool_),
        ("segmented_cummin", segmented_cummin, (3, 1000), jnp.int32),
    ):
        arguments = jax.ShapeDtypeStruct(size, jnp.float32), jax.ShapeDtypeStruct(size, ids)
        gradient = jax.grad(lambda x, ids, scan=scan: jnp.sum(scan(x, ids) ** 2))
        found += [
            Case(label, size, _given(scan, *arguments), FORWARD),
            Case(f"{label}, gradient", size, _given(gradient, *arguments), BACKWARD),
        ]
    return found


def overflows() -> list[Case]:
    """Expected failures: a kernel with two 32 MiB windows in VMEM, and a dense program larger than any HBM."""

    def kernel(x, y):
        y[...] = x[:8]

    def copies(x):
        blocks = pl.BlockSpec((2**16, 128), lambda i: (i, 0)), pl.BlockSpec((8, 128), lambda i: (i, 0))
        shape = jax.ShapeDtypeStruct((16, 128), x.dtype)
        return pl.pallas_call(kernel, grid=(2,), in_specs=blocks[:1], out_specs=blocks[1], out_shape=shape)(x)

    window = jax.ShapeDtypeStruct((2**17, 128), jnp.float32)
    size = (2**17, 4096, 262144)
    dense = forward(partial(token_stats, implementation="reference"))
    return [
        Case("overflow of VMEM", (2**17, 128), _given(copies, window), fails_with="vmem"),
        Case("overflow of HBM", size, _given(dense, *inputs(*size)), is_kernel=False, fails_with="HBM|hbm"),
    ]
