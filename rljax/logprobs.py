"""From hidden states and the unembedding to what the loss needs of every trained token, on one device or a mesh."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import TokenStats, token_stats


def token_logps(
    hidden: Float[Array, "*B T D"],
    unembedding: Float[Array, "V D"],
    tokens: Int[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    mesh: Mesh | None = None,
    implementation: str | None = None,
) -> TokenStats:
    """log π(tokens[t] | tokens[<t]) where `mask` is true, with the entropy and the proxy of the same π.

        π_t = softmax(hidden[t−1]·Wᵀ/τ):   logp[t] = log π_t(tokens[t]),   and 0 where ¬mask[t] or t = 0

    Each [*B, T] and as `pallas_kernels.token_stats` defines it.  What `hidden` and `tokens` hold where nothing is
    predicted changes nothing, even NaN.  A token outside the vocabulary counts as masked.

    With a `mesh` (axes of AxisType.Auto) the tokens are divided over all of its devices, whatever the axes are called,
    and every device holds the whole unembedding; values and gradients are those of one device.

    Raises ValueError for shapes that do not fit each other, TypeError for dtypes.

    >>> import jax.numpy as jnp
    >>> hidden, unembedding = jnp.zeros((1, 3, 8)), jnp.ones((4, 8))
    >>> stats = token_logps(hidden, unembedding, jnp.array([[3, 1, 2]]), jnp.array([[True, False, True]]))
    >>> [round(float(value), 4) for value in stats.logp[0]]
    [0.0, 0.0, -1.3863]
    """
    _check(hidden, unembedding, tokens, mask)
    targets = jnp.where(mask, tokens, -1)
    following = jnp.concatenate([targets[..., 1:], jnp.full_like(targets[..., :1], -1)], axis=-1)  # hidden[t] sees t+1
    rows, y = hidden.reshape(-1, hidden.shape[-1]), following.reshape(-1)

    def stats(rows, unembedding, y, temperature):
        return token_stats(rows, unembedding, y, temperature=temperature, implementation=implementation)

    run = stats if mesh is None else _divided(stats, mesh)
    return TokenStats(*(_delayed(stat.reshape(tokens.shape)) for stat in run(rows, unembedding, y, temperature)))


def _divided(stats, mesh: Mesh):
    """`stats` with its rows split over all the mesh's devices; the transpose of replication sums ∂W over them."""
    rows = P(mesh.axis_names)
    split = jax.shard_map(stats, mesh=mesh, in_specs=(rows, P(), rows, P()), out_specs=rows, check_vma=False)

    def run(hidden, unembedding, targets, temperature):
        count = hidden.shape[0]
        extra = -count % mesh.size
        hidden = jnp.pad(hidden, ((0, extra), (0, 0)))
        targets = jnp.pad(targets, (0, extra), constant_values=-1)
        return jax.tree.map(lambda stat: stat[:count], split(hidden, unembedding, targets, temperature))

    return run


def _delayed(x):
    """[.., T] one step later: what was computed at t−1 stands at t, and 0 at t = 0."""
    return jnp.concatenate([jnp.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)


def _check(hidden, unembedding, tokens, mask) -> None:
    shape = jnp.shape(tokens)
    if not shape or jnp.shape(hidden)[:-1] != shape:
        raise ValueError(
            f"token_logps: hidden is of shape {jnp.shape(hidden)}; it should be [*B, T, D] "
            f"with [*B, T] = {shape}, as in tokens"
        )
    if jnp.shape(mask) != shape:
        raise ValueError(f"token_logps: mask is of shape {jnp.shape(mask)}; it should be {shape}, as tokens")
    if jnp.result_type(mask) != jnp.bool_:
        raise TypeError(f"token_logps: mask is of dtype {jnp.result_type(mask)}; it should be bool")
    if not jnp.issubdtype(jnp.result_type(tokens), jnp.signedinteger):
        raise TypeError(f"token_logps: tokens is of dtype {jnp.result_type(tokens)}; it should be a signed integer")
    if jnp.ndim(unembedding) != 2 or jnp.shape(unembedding)[1] != jnp.shape(hidden)[-1]:
        raise ValueError(
            f"token_logps: unembedding is of shape {jnp.shape(unembedding)}; it should be [V, D] "
            f"with D = {jnp.shape(hidden)[-1]}, as in hidden"
        )
