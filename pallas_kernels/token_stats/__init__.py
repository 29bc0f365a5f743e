"""Log-probability, entropy and gradient energy of tokens, from hidden states and the unembedding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels._dispatch import on_explicit_axes, rows_of
from pallas_kernels._vocabulary.arguments import check, columns_of, inputs_of
from pallas_kernels._vocabulary.types import Tile, TokenStats, dtypes
from pallas_kernels.token_stats._implementations import implementation_of

__all__ = ["TokenStats", "token_stats"]


@on_explicit_axes(rows_of)
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
    """Log-probability, entropy and gradient energy of every token; only "reference" stores the logits [N, V].

        z = h·Wᵀ + b,     x = z/τ  (with a soft cap, x = c·tanh(z/c)/τ),     π = softmax(x)

        logp    = log π(y)
        entropy = − Σ_v π(v) log π(v)              in nats, in [0, log V]
        proxy   = 1 − 2 π(y) + Σ_v π(v)²           = ‖∂ logp/∂x‖², in [0, 2]

    `proxy` is the gradient energy in the optimal token baseline (2602.07078). `token_topk` also returns the most likely
    tokens, but its outputs have no gradients.

    The outputs are differentiable in `hidden`, `unembedding` and `bias` in reverse mode; second derivatives need
    `implementation` None, "chunked" or "reference". Logits, sums and gradients accumulate in the outputs' dtype.

    A token is banned if z/τ ≤ −10³⁰ (before a soft cap), for instance by a bias of −∞. Its π is 0 and has no gradient,
    and the statistics are those of the other tokens. If the target is banned, logp is −∞ without a gradient; if all
    tokens are banned, the entropy is 0 and the proxy is 1. Other logits must be within ±10²⁹. NaN gives NaN.

    "reference" and "chunked" have run on CPUs only. "tpu" has never run on a TPU: it runs in Pallas' interpreter
    (tests/kernels/token_stats_tpu_test.py) and compiles for v5e, v5p, v6e and tpu7x (`make tpu-compile`). "gpu" has
    never run on a GPU: it runs in the interpreter (tests/kernels/token_stats_gpu_test.py).

    Args:
      hidden: h, [N, D], floating point. Rows with a target must be finite; others may hold anything.
      unembedding: W, [V, D], floating point (the layout of an embedding table). Use `bias` to ban tokens: with infinite
        entries in W, gradients are finite only in "reference" and "chunked".
      targets: y, [N], integers; a row whose target is outside [0, vocab_size) has no target.
      temperature: τ > 0, a scalar; may be traced, and is a constant in derivatives.
      softcap: c > 0, a scalar in units of z, or None for no cap; may be traced, and is a constant in derivatives.
      bias: b, [V], floating point, or None for 0; −∞ bans a token.
      mask: [N], bool; rows where it is false have no target. None is true everywhere.
      vocab_size: Number of tokens; rows of W and b from `vocab_size` on are padding. None: every row is a token.
      axis_name: Axis of the surrounding `shard_map` that shards the vocabulary, or None. `unembedding` and `bias` are
        this device's rows; `targets` and `vocab_size` refer to all rows. All devices of the axis get the same outputs.
      width_axis: Axis of the surrounding `shard_map` that shards D of `unembedding` (gathered block by block), or None.
      tile: (tokens, vocabulary), the shape of the tile of logits in memory; None is the implementation's default.
      implementation: "reference" (dense, the definition), "chunked" (any device), "tpu" or "gpu" (that platform only).
        None is "tpu" on TPUs (bfloat16, float32), "chunked" with large tiles on GPUs (never run there), else "chunked".

    Returns:
      `TokenStats` with logp, entropy and proxy, [N] each, in float32 (float64 if `hidden` or `unembedding` is). Rows
        without a target give 0 and have no gradient.

    Raises:
      ValueError: If a rank, shape, temperature, soft cap, tile, mesh axis or implementation name is invalid.
      TypeError: If a dtype is invalid, or the implementation does not support it.
      NotImplementedError: If "tpu" or "gpu" is lowered for another platform.

    >>> import jax.numpy as jnp
    >>> stats = token_stats(jnp.zeros((3, 8)), jnp.ones((4, 8)), jnp.array([0, 3, -1]))
    >>> [round(float(value), 4) for value in stats.logp]
    [-1.3863, -1.3863, 0.0]
    >>> [float(value) for value in stats.proxy]
    [0.75, 0.75, 0.0]
    """
    scalars = {"temperature": temperature, "softcap": softcap}
    check("token_stats", hidden, unembedding, targets, bias, mask, scalars, tile, width_axis)
    columns = columns_of("token_stats", vocab_size, unembedding, axis_name)
    inputs = inputs_of(hidden, unembedding, targets, bias, mask, scalars, columns, axis_name)
    tile = tile if tile is None else Tile(*tile)
    run = implementation_of(implementation, dtypes(hidden, unembedding)[0], tile, columns, axis_name, width_axis)
    if jax.sharding.get_abstract_mesh().manual_axes:  # shard_map without jit loses symbolic zeros
        run = jax.jit(run)
    if hidden.shape[0] == 0:
        return TokenStats(*(jnp.zeros(0, inputs.beta.dtype),) * 3)
    return run(*inputs)
