"""The optimizer: AdamW by its settings, or any transformation of Optax; and where its state is stored on the mesh."""

import dataclasses
import math

import jax
import optax
import tyro
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rljax._checks import check


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW under a linear warm-up and an optional cosine decay, with clipping by global norm."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int = 0
    """Optimizer steps over which the rate rises linearly from 0."""
    decay_steps: int = 0
    """Optimizer steps, the warm-up included, over which it then falls by a cosine to a tenth; 0 keeps it constant."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.98
    """Decay of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices (vectors, such as norm scales, have none)."""
    clip_norm: float = 1.0
    """Gradients with a larger global norm are scaled down to it."""

    def __post_init__(self):
        check(
            self.learning_rate > 0 and math.isfinite(self.learning_rate),
            "optimizer.learning_rate",
            self.learning_rate,
            "a positive number",
        )
        check(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more steps")
        check(self.decay_steps == 0 or self.decay_steps > self.warmup_steps, "optimizer.decay_steps", self.decay_steps,
              f"0 (constant), or more than warmup_steps = {self.warmup_steps}")  # fmt: skip
        for name in ("b1", "b2"):
            check(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "a number in [0, 1)")
        check(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        check(self.clip_norm > 0, "optimizer.clip_norm", self.clip_norm, "a positive norm (inf never clips)")


Optimizer = tyro.conf.AvoidSubcommands[OptimizerConfig | optax.GradientTransformation]
"""AdamW's settings, which the command line can override, or any transformation of Optax."""


def checked(optimizer, argument: str):
    """The optimizer of a config, checked; `optax.MultiSteps` is a transformation by its method alone."""
    if isinstance(optimizer, optax.MultiSteps):
        return optimizer.gradient_transformation()
    check(isinstance(optimizer, OptimizerConfig | optax.GradientTransformation), argument, optimizer,
          "an OptimizerConfig, an optax.GradientTransformation or optax.MultiSteps")  # fmt: skip
    return optimizer


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Linear warm-up to the peak, then constant, or a cosine to a tenth of it."""
    peak = config.learning_rate
    if config.decay_steps:
        return optax.warmup_cosine_decay_schedule(
            0.0 if config.warmup_steps else peak, peak, config.warmup_steps, config.decay_steps, end_value=peak / 10
        )
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, optax.constant_schedule(peak)], [config.warmup_steps])


def make_optimizer(optimizer: OptimizerConfig | optax.GradientTransformation) -> optax.GradientTransformation:
    """AdamW behind a clip by global norm, from its settings; a transformation of Optax as it is."""
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm),
        optax.adamw(
            schedule(optimizer),
            b1=optimizer.b1,
            b2=optimizer.b2,
            weight_decay=optimizer.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


def abstract_state(optimizer: optax.GradientTransformation, params):
    """Shapes and shardings of the optimizer's state, for parameters or their `jax.ShapeDtypeStruct`s.

    An array of a parameter's shape, under that parameter's path, is split as the parameter is (moments, accumulated
    gradients); all others (counters, factored moments) are whole on every device.
    """
    shardings = {(path, x.shape): x.sharding for path, x in jax.tree_util.tree_leaves_with_path(params)}
    whole = NamedSharding(next(iter(shardings.values())).mesh, P())

    def placed(path, x):
        ends = (path[i:] for i in range(len(path)))
        sharding = next((shardings[end, x.shape] for end in ends if (end, x.shape) in shardings), whole)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(placed, jax.eval_shape(optimizer.init, params))


def init_state(optimizer: optax.GradientTransformation, params):
    """The optimizer's first state, sharded (a plain jit of `init` would replicate the moments)."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(optimizer, params))
    with jax.disable_jit(False):  # without jit there are no shardings
        return jax.jit(optimizer.init, out_shardings=shardings)(params)
