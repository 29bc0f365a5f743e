"""What a policy-gradient loss needs to know of each token, from hidden states and the unembedding."""

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
    "reference" (dense, the definition), "chunked" (any device), "tpu", "gpu" (their platform alone).
    `tile` is (tokens, vocabulary), the logits that it holds at a time; the default takes little memory.

    All three outputs are differentiable in `hidden`, `unembedding` and `bias`, by reverse mode only (twice with None or
    "chunked"); τ > 0 and c > 0 may be traced but count as constants.  The proxy is that of the optimal token baseline
    (2602.07078).

    A token is banned if z/τ ≤ −10³⁰, for instance by a bias of −∞, even with a soft cap.  Its π is exactly 0, the
    statistics are those of the other tokens, and the gradient of its logit is 0.  If the target is banned, logp is −∞
    without a gradient; if all tokens are, the entropy is 0 and the proxy is 1.  Other logits must be within ±10²⁹; NaN
    gives NaN.  `hidden` must be finite. A bias may be −∞; a row of
    `unembedding` whose logits are −∞ has finite gradients in "reference" and "chunked" only.

    Raises ValueError for ranks, sizes, a temperature or an implementation that do not fit, TypeError for dtypes, and
    NotImplementedError for "tpu" or "gpu" if the program is lowered for another platform.

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
    if jax.sharding.get_abstract_mesh().manual_axes:  # a shard_map that is not compiled cannot tell zero cotangents
        run = jax.jit(run)
    if hidden.shape[0] == 0:
        return TokenStats(*(jnp.zeros(0, inputs.beta.dtype),) * 3)
    return run(*inputs)
