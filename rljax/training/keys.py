"""Random keys per purpose and step, and their JSON form in checkpoint records."""

import jax
import jax.numpy as jnp

_PURPOSES = ("initialize", "rollout", "rewards", "watch", "evaluate", "greedy")


def purpose_key(key: jax.Array, purpose: str, step: int = 0) -> jax.Array:
    """Derives a distinct key for each purpose and step from the run's key."""
    return jax.random.fold_in(jax.random.fold_in(key, _PURPOSES.index(purpose)), step)


def encode_key(key: jax.Array) -> dict:
    return {"words": jax.random.key_data(key).tolist(), "implementation": str(jax.random.key_impl(key))}


def decode_key(record: dict) -> jax.Array:
    return jax.random.wrap_key_data(jnp.array(record["words"], jnp.uint32), impl=record["implementation"])
