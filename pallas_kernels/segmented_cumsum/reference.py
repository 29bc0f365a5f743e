"""The definition of a segmented scan: a masked reduction over all pairs of tokens."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.segmented_cumsum._monoids import Operation


def segmented_scan(
    operation: Operation,
    x: Float[Array, "*B T"],
    segment_ids: Int[Array, "*B T"] | Bool[Array, "*B T"],
    reverse: bool,
    exclusive: bool,
) -> Float[Array, "*B T"]:
    """y_t = Σ_s x_s or min_s x_s over s ≤ t (s ≥ t if `reverse`; s ≠ t if `exclusive`) with id_s = id_t ≠ 0."""
    t = jnp.arange(x.shape[-1])
    after, before = t[:, None], t[None, :]
    if reverse:
        after, before = before, after
    in_order = before < after if exclusive else before <= after
    same = (segment_ids[..., :, None] == segment_ids[..., None, :]) & segment_ids.astype(jnp.bool_)[..., :, None]
    mask = same & in_order.reshape(*[1] * (x.ndim - 1), *in_order.shape)
    return operation.reduce(jnp.where(mask, x[..., None, :], operation.empty), axis=-1)
