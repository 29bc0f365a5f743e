"""Optimizers: AdamW or any optax transformation, with a state that is sharded like the parameters."""

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
    """AdamW with gradient clipping by global norm, linear warm-up and optional cosine decay of the learning rate."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from 0 to its peak."""
    decay_steps: int = 0
    """Optimizer step at which a cosine decay reaches a tenth of the peak (warm-up included); 0 disables the decay."""
    b1: float = 0.9
    """Decay rate of Adam's first moment."""
    b2: float = 0.98
    """Decay rate of Adam's second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay, applied to matrices but not to vectors such as norm scales."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; larger gradients are scaled down to this norm. inf never clips."""

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
"""AdamW's settings, which the command line can override, or any optax transformation."""


def checked(optimizer, argument: str):
    """Checks the optimizer of a config and converts `optax.MultiSteps` to a transformation."""
    if isinstance(optimizer, optax.MultiSteps):
        return optimizer.gradient_transformation()
    check(isinstance(optimizer, OptimizerConfig | optax.GradientTransformation), argument, optimizer,
          "an OptimizerConfig, an optax.GradientTransformation or an optax.MultiSteps")  # fmt: skip
    return optimizer


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate per optimizer step: linear warm-up, then constant or a cosine decay to a tenth of the peak."""
    peak = config.learning_rate
    if config.decay_steps:
        return optax.warmup_cosine_decay_schedule(
            0.0 if config.warmup_steps else peak, peak, config.warmup_steps, config.decay_steps, end_value=peak / 10
        )
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, optax.constant_schedule(peak)], [config.warmup_steps])


def make_optimizer(optimizer: OptimizerConfig | optax.GradientTransformation) -> optax.GradientTransformation:
    """Builds AdamW with gradient clipping from its settings; returns an optax transformation unchanged."""
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

    Arrays with the path and shape of a parameter (such as moments) are sharded like it; other arrays are replicated.
    """
    shardings = {(path, x.shape): x.sharding for path, x in jax.tree_util.tree_leaves_with_path(params)}
    whole = NamedSharding(next(iter(shardings.values())).mesh, P())

    def placed(path, x):
        ends = (path[i:] for i in range(len(path)))
        sharding = next((shardings[end, x.shape] for end in ends if (end, x.shape) in shardings), whole)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(placed, jax.eval_shape(optimizer.init, params))


def init_state(optimizer: optax.GradientTransformation, params):
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(optimizer, params))
    with jax.disable_jit(False):  # shardings are applied only under jit
        return jax.jit(optimizer.init, out_shardings=shardings)(params)
