"""Optax: AdamW with its schedule, and where its state lives on the mesh."""

import jax
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rljax.training.config import OptimizerConfig


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Linear warm-up to the peak, then constant, or a cosine to a tenth of it."""
    peak = config.learning_rate
    if config.decay_steps:
        return optax.warmup_cosine_decay_schedule(
            0.0 if config.warmup_steps else peak, peak, config.warmup_steps, config.decay_steps, end_value=peak / 10
        )
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, optax.constant_schedule(peak)], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW behind a clip by global norm."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule(config),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


def abstract_state(optimizer: optax.GradientTransformation, params):
    """Shapes and shardings of the optimizer's state: moments lie where their parameters do, counters everywhere."""
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    state = jax.eval_shape(optimizer.init, params)

    def placed(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda x, p: placed(x, p.sharding),
        state,
        params,
        transform_non_params=lambda x: placed(x, NamedSharding(mesh, P())),
    )


def init_state(optimizer: optax.GradientTransformation, params):
    """The optimizer's first state, sharded (a plain jit of `init` would replicate the moments)."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(optimizer, params))
    return jax.jit(optimizer.init, out_shardings=shardings)(params)
