"""Selection of token_stats' implementation, by name or by platform."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels._dispatch import by_platform, chosen, only_on
from pallas_kernels._vocabulary.types import Head, Tile, TokenStats
from pallas_kernels._vocabulary.vjp import Passes, Plan, rule, shard
from pallas_kernels.token_stats import chunked, gpu, gpu_xla, reference, tpu
from pallas_kernels.token_stats.tpu.generations import require_products

KERNEL = "token_stats"


def _named(name: str, module) -> Passes:
    return Passes(*(jax.named_scope(f"{KERNEL}_{name}")(pass_) for pass_ in (module.sums, module.gradients)))


PASSES = {
    "chunked": _named("chunked", chunked),
    "tpu": Passes(only_on(KERNEL, "tpu", tpu.sums), only_on(KERNEL, "tpu", tpu.gradients)),
    "gpu": Passes(only_on(KERNEL, "gpu", gpu.sums), only_on(KERNEL, "gpu", gpu.gradients)),
}


@cache
def implementation_of(
    name: str | None, dtype, tile: Tile | None, vocabulary: int, axis_name: str | None, width_axis: str | None
) -> Callable[..., TokenStats]:
    """The function `(*vjp.Inputs) -> TokenStats` of an implementation; None selects by platform."""
    name = chosen(KERNEL, name, (None, "reference", *PASSES))
    if name == "reference":
        return jax.named_scope(f"{KERNEL}_reference")(partial(_dense, vocabulary, axis_name, width_axis))
    if name == "tpu":
        require_products(dtype)
    passes = _best(dtype) if name is None else PASSES[name]
    return rule(Plan(passes, tile, vocabulary, axis_name, width_axis))


@cache
def _best(dtype) -> Passes:
    """The default passes: on a TPU its kernels if they support the dtype, on a GPU `gpu_xla`, else `chunked`.

    The Triton kernel is not the default on a GPU, since it has never run there.
    """
    own = {"tpu": tpu} if dtype in (jnp.bfloat16, jnp.float32) else {}
    passes = {"chunked": chunked, "gpu": gpu_xla} | own
    return Passes(
        by_platform(KERNEL, **{name: module.sums for name, module in passes.items()}),
        by_platform(KERNEL, **{name: module.gradients for name, module in passes.items()}),
    )


def _dense(vocabulary: int, axis_name, width_axis, hidden, unembedding, bias, targets, beta, softcap) -> TokenStats:
    w = unembedding if width_axis is None else lax.all_gather(unembedding, width_axis, axis=1, tiled=True)
    begin, size = shard(vocabulary, axis_name, w.shape[0])
    return reference.token_stats(hidden, Head(w, bias, beta, softcap, size), targets, begin, axis_name)
