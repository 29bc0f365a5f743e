"""What a policy-gradient loss needs to know of each token, from hidden states and the unembedding."""

import jax.numpy as jnp
from jax import core, lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels._dispatch import axes_of, require, varying_over
from pallas_kernels.token_stats._implementations import implementation_of
from pallas_kernels.token_stats._types import ABSENT, Tile, TokenStats, dtypes

__all__ = ["TokenStats", "token_stats"]


def token_stats(
    hidden: Float[Array, "N D"],
    unembedding: Float[Array, "V D"],
    targets: Int[Array, " N"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    softcap: float | Float[Array, ""] | None = None,
    bias: Float[Array, " V"] | None = None,
    mask: Bool[Array, " N"] | None = None,
    vocab_size: int | None = None,
    axis_name: str | None = None,
    width_axis: str | None = None,
    tile: tuple[int, int] | None = None,
    implementation: str | None = None,
) -> TokenStats:
    """Log-probability, entropy and gradient energy of every token, without its logits leaving the kernel.

    With z = h·Wᵀ + b, x = z/τ (capped at c: c·tanh(z/c)/τ) and π = softmax(x), for the target y of each row:

        logp    = log π(y)
        entropy = − Σ_v π(v) log π(v)              in nats, in [0, log V]
        proxy   = 1 − 2 π(y) + Σ_v π(v)²           = ‖∂ logp/∂x‖², in [0, 2]

    `hidden` is [N, D], `unembedding` [V, D] (the layout of an embedding table), `targets` [N] integers, `bias` b [V];
    the outputs are [N], in float32 (float64 where an input is).  Logits and gradients accumulate in that type whatever
    the inputs are.  A row whose `mask` is false or whose target is outside [0, vocab_size) gives 0, 0, 0 and no
    gradient, whatever its row of `hidden` holds, even NaN.  Rows of the weight from `vocab_size` on are padding.

    Inside `shard_map`, `axis_name` is the mesh axis over which the vocabulary is split: `unembedding` and `bias` are
    this device's rows, `targets` and `vocab_size` count over all of them, and the outputs are the same on each device
    of that axis.  `width_axis` is the axis over which D of the unembedding is split; it is gathered slab by slab.

    `implementation` is None, the best one for the platform that the program is lowered for, or one by name:
    "reference" (dense, the definition), "chunked" (any device), "tpu", "gpu" (their platform alone, else an error).
    `tile` is (tokens, vocabulary), the logits that it holds at a time; the default takes little memory.

    All three outputs are differentiable in `hidden`, `unembedding` and `bias`, by reverse mode only; τ > 0 and c > 0
    may be traced but count as constants.  The proxy is that of the optimal token baseline (2602.07078).

    Raises ValueError for ranks, sizes, a temperature or an implementation that do not fit, TypeError for dtypes.

    >>> import jax.numpy as jnp
    >>> stats = token_stats(jnp.zeros((3, 8)), jnp.ones((4, 8)), jnp.array([0, 3, -1]))
    >>> [round(float(value), 4) for value in stats.logp]
    [-1.3863, -1.3863, 0.0]
    >>> [float(value) for value in stats.proxy]
    [0.75, 0.75, 0.0]
    """
    scalars = {"temperature": temperature, "softcap": softcap}
    _check(hidden, unembedding, targets, bias, mask, scalars, axis_name, width_axis, tile)
    shards = 1 if axis_name is None else lax.axis_size(axis_name)
    columns = _vocabulary(vocab_size, shards * unembedding.shape[0])
    common, accumulator = dtypes(hidden, unembedding)
    tile = tile if tile is None else Tile(*tile)
    run = implementation_of(implementation, common, tile, columns, axis_name, width_axis)
    if hidden.shape[0] == 0:
        return TokenStats(*(jnp.zeros(0, accumulator),) * 3)
    present = (targets >= 0) & (targets < columns)
    present = present if mask is None else present & mask
    y = jnp.where(present, targets.astype(jnp.int32), ABSENT)
    beta = lax.stop_gradient(1 / jnp.asarray(temperature, accumulator))
    cap = None if softcap is None else lax.stop_gradient(jnp.asarray(softcap, accumulator))
    axes = axes_of(hidden, unembedding, bias, y, beta, cap)
    weights = varying_over(axes, hidden, unembedding, bias)
    return run(*weights, *varying_over(axes - {axis_name}, y, beta, cap))


def _check(hidden, unembedding, targets, bias, mask, scalars, axis_name, width_axis, tile) -> None:
    kernel = "token_stats"
    for name, array, axes in (("hidden", hidden, "[N, D]"), ("unembedding", unembedding, "[V, D]")):
        require(jnp.ndim(array) == 2, kernel, name, f"of shape {jnp.shape(array)}", f"of two axes, {axes}")
        floating = jnp.issubdtype(jnp.result_type(array), jnp.floating)
        require(floating, kernel, name, f"of dtype {jnp.result_type(array)}", "floating point", TypeError)
    (N, D), (V, width) = jnp.shape(hidden), jnp.shape(unembedding)
    shards = 1 if width_axis is None else lax.axis_size(width_axis)
    of = f"[V, D] with D = {D}, as in hidden" if shards == 1 else f"[V, D/{shards}] with D = {D}, as in hidden"
    require(width * shards == D, kernel, "unembedding", f"of shape {(V, width)}", of)
    require(V > 0, kernel, "unembedding", f"of shape {(V, width)}", "of at least one row")
    _check_vector("targets", targets, N, "N", "as in hidden", jnp.integer, "integer")
    if bias is not None:
        _check_vector("bias", bias, V, "V", "as in unembedding", jnp.floating, "floating point")
    if mask is not None:
        _check_vector("mask", mask, N, "N", "as in hidden", jnp.bool_, "bool")
    for name, value in scalars.items():
        _check_scalar(name, value)
    if tile is not None:
        whole = len(tile) == 2 and all(isinstance(size, int) and size > 0 for size in tile)
        require(whole, kernel, "tile", tile, "(tokens, vocabulary), two positive integers")


def _check_vector(name, array, size, symbol, origin, kind, kind_name) -> None:
    shape, dtype = jnp.shape(array), jnp.result_type(array)
    require(shape == (size,), "token_stats", name, f"of shape {shape}", f"[{symbol}] with {symbol} = {size}, {origin}")
    fits = dtype == kind if kind is jnp.bool_ else jnp.issubdtype(dtype, kind)
    require(fits, "token_stats", name, f"of dtype {dtype}", kind_name, TypeError)


def _check_scalar(name, value) -> None:
    if value is None:
        return
    require(jnp.ndim(value) == 0, "token_stats", name, f"of shape {jnp.shape(value)}", "a scalar")
    if not isinstance(value, core.Tracer):
        remedy = "positive and finite" + (" (for greedy decoding there is no π)" if name == "temperature" else "")
        require(0 < float(value) < float("inf"), "token_stats", name, value, remedy)


def _vocabulary(vocab_size: int | None, rows: int) -> int:
    if vocab_size is None:
        return rows
    fits = isinstance(vocab_size, int) and 0 < vocab_size <= rows
    require(fits, "token_stats", "vocab_size", vocab_size, f"an integer in [1, {rows}], the rows of unembedding")
    return vocab_size
