import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rljax.models import make_mesh
from rljax.training import MeshConfig, OptimizerConfig
from rljax.training.optimizer import init_state, make_optimizer, schedule

pytestmark = pytest.mark.standard_promotion


def test_a_constant_schedule_after_its_warm_up():
    rate = schedule(OptimizerConfig(learning_rate=1e-3, warmup_steps=4))
    np.testing.assert_allclose([rate(0), rate(2), rate(4), rate(1000)], [0.0, 5e-4, 1e-3, 1e-3], rtol=1e-6)


def test_a_cosine_that_ends_at_a_tenth():
    rate = schedule(OptimizerConfig(learning_rate=1e-3, warmup_steps=10, decay_steps=110))
    np.testing.assert_allclose([rate(10), rate(60), rate(110), rate(500)], [1e-3, 5.5e-4, 1e-4, 1e-4], rtol=1e-5)


def test_the_first_step_of_adamw_by_hand():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5, clip_norm=1e9))
    params = {"matrix": jnp.full((2, 2), 2.0), "scale": jnp.full((2,), 2.0)}
    gradient = {"matrix": jnp.full((2, 2), -3.0), "scale": jnp.full((2,), 3.0)}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["matrix"], 0.1 - 0.1 * 0.5 * 2.0, atol=1e-5)
    np.testing.assert_allclose(updates["scale"], -0.1, rtol=1e-5)


def test_moments_are_sharded_like_their_parameters():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    split = NamedSharding(mesh, P("fsdp", None))
    params = {"matrix": jax.device_put(jnp.ones((8, 2)), split)}
    state = init_state(make_optimizer(OptimizerConfig()), params)
    moments = [x for x in jax.tree.leaves(state) if x.shape == (8, 2)]
    assert len(moments) == 2
    assert all(x.sharding.is_equivalent_to(split, 2) for x in moments)


def test_an_infinite_norm_never_clips():
    """Uses two gradients of different norms, so that Adam's second step depends on clipping."""

    def second_step(clip_norm):
        optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, clip_norm=clip_norm))
        params = {"matrix": jnp.ones((2, 2))}
        _, state = optimizer.update({"matrix": jnp.full((2, 2), 30.0)}, optimizer.init(params), params)
        return optimizer.update({"matrix": jnp.full((2, 2), -1.0)}, state, params)[0]["matrix"]

    np.testing.assert_array_equal(second_step(np.inf), second_step(1e9))
    assert abs(second_step(np.inf) - second_step(1.0)).min() > 1e-3
