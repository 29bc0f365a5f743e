"""Checks of the three arguments that every ratio takes."""

from jax import Array
from jaxtyping import Float

from rljax._checks import accumulators, require_floating, require_rank, require_segments, require_shape

Tokens = Float[Array, "*B T"]


def checked(log_ratio, advantages, segments) -> tuple[Array, Array, Array]:
    """The three arguments after checks; `log_ratio` and `advantages` are in the dtype of sums."""
    segments = require_segments(segments)
    if segments.ndim == 0:
        require_rank("segments", segments, "*B T")
    require_shape(segments.shape, "segments", log_ratio=log_ratio, advantages=advantages)
    require_floating(log_ratio=log_ratio)
    log_ratio, advantages = accumulators(log_ratio=log_ratio, advantages=advantages)
    return log_ratio, advantages, segments
