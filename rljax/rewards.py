"""What happens to a reward before it is an advantage: dynamic sampling, length penalties, and a control."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Real

from rljax._checks import accumulators, require_between, require_mask, require_rank, require_shape

__all__ = ["informative", "overlong_penalty", "permute_within_group"]


def informative(rewards: Real[Array, "P G"], mask: Bool[Array, "P G T"]) -> Bool[Array, "P"]:
    """True for the groups whose rewards differ among the completions present: the others have advantage 0.

    Keeping these is DAPO's dynamic sampling, 0 < #correct < G for binary rewards (2503.14476).
    """
    mask, rewards = require_mask(mask, "P G T"), jnp.asarray(rewards)
    require_shape(mask.shape[:2], "mask's leading axes", rewards=rewards)
    (rewards,) = accumulators(rewards=rewards)
    present = jnp.any(mask, axis=-1)
    highest = jnp.max(rewards, axis=1, where=present, initial=-jnp.inf)
    return highest > jnp.min(rewards, axis=1, where=present, initial=jnp.inf)


def permute_within_group(rewards: Real[Array, "P G"], key: Array) -> Real[Array, "P G"]:
    """The rewards of each group in an order of its own, uniformly random: a control that must teach nothing."""
    rewards = jnp.asarray(rewards)
    require_rank("rewards", rewards, "P G")
    return jax.random.permutation(key, rewards, axis=1, independent=True)


def overlong_penalty(lengths: Real[Array, "..."], *, max_length: float, buffer: float) -> Float[Array, "..."]:
    """DAPO's soft penalty on long completions, to be added to the reward (2503.14476).

        min(0, −(length − (max_length − buffer)) / buffer)

    In tokens: 0 until the last `buffer` tokens of `max_length`, then falling linearly to −1 at `max_length`.

    >>> overlong_penalty(jnp.array([70, 90, 100]), max_length=100, buffer=20).tolist()
    [0.0, -0.5, -1.0]
    """
    require_between("max_length", max_length, 1)
    require_between("buffer", buffer, 1e-30)
    (lengths,) = accumulators(lengths=lengths)
    return jnp.minimum(0.0, (max_length - buffer - lengths) / buffer)
