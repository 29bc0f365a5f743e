import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np

from rljax.rollout import row_keys
from rljax.training.keys import decode_key, encode_key, purpose_key


def test_keys_differ_by_seed_purpose_step_and_row():
    purposes = "rollout", "rewards", "greedy"

    @jax.jit
    def run(seed, step):
        keys = [purpose_key(jax.random.key(seed), purpose, step) for purpose in purposes]
        return jax.random.key_data(jnp.stack([row_keys(key, jnp.arange(3)) for key in keys]))

    data = np.stack([run(seed, step) for seed, step in itertools.product((0, 1), (0, 1))])
    assert len({tuple(key) for key in data.reshape(-1, 2).tolist()}) == 4 * len(purposes) * 3
    np.testing.assert_array_equal(data[0], run(0, 0))


def test_a_key_is_the_same_after_a_record():
    key = jax.random.key(7)
    again = decode_key(json.loads(json.dumps(encode_key(key))))
    assert jax.random.key_impl(again) == jax.random.key_impl(key)
    np.testing.assert_array_equal(jax.random.key_data(again), jax.random.key_data(key))
