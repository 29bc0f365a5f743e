"""Random keys: one for each purpose and step, and as a checkpoint's record stores them."""

import jax
import jax.numpy as jnp

_PURPOSES = ("initialize", "rollout", "rewards", "watch", "evaluate", "greedy")


def purpose_key(key: jax.Array, purpose: str, step: int = 0) -> jax.Array:
    """A key of its own for each purpose and step, from the run's one key."""
    return jax.random.fold_in(jax.random.fold_in(key, _PURPOSES.index(purpose)), step)


def encode_key(key: jax.Array) -> dict:
    """A random key as JSON."""
    return {"words": jax.random.key_data(key).tolist(), "implementation": str(jax.random.key_impl(key))}


def decode_key(record: dict) -> jax.Array:
    """The random key of its JSON."""
    return jax.random.wrap_key_data(jnp.array(record["words"], jnp.uint32), impl=record["implementation"])
