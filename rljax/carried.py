"""State carried from rollout to rollout: hysteresis of the entropy, an average reward, an entropy coefficient.

Each function returns a `Carried(init, update)`, to be given as `PolicyGradient(carried=…)`. `init() -> state` is a
pytree of arrays; `update(state, rollouts) -> (rollouts, state)` is called once per rollout, before the advantage, on
the whole rollout, and what it writes into the rollouts is read by the advantage, the aggregation or a penalty. A field
of `Rollouts` that an update needs is a required keyword-only parameter of its name. The trainer keeps the state in its
checkpoints.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from rljax._checks import ranges, require_mask, require_ordered, require_rank, require_shape
from rljax.objective import Carried, Rollouts, bind

__all__ = ["advance", "average_reward", "entropy_hysteresis", "target_entropy"]


def advance(carried: Carried | None, state: Any, rollouts: Rollouts) -> tuple[Rollouts, Any]:
    """`carried.update` on the state and the fields it names; (rollouts, state) as they are if `carried` is None.

    >>> rollouts = Rollouts(tokens=jnp.zeros((1, 2, 1), int), mask=jnp.ones((1, 2, 1), bool),
    ...                     rewards=jnp.array([[1.0, 0.0]]), old_logp=jnp.zeros((1, 2, 1)))
    >>> carried = average_reward(decay=0.5)
    >>> rollouts, state = advance(carried, carried.init(), rollouts)
    >>> float(state), rollouts.rewards.tolist()
    (0.25, [[0.75, -0.25]])
    """
    return (rollouts, state) if carried is None else bind(carried.update, rollouts)(state, rollouts)


def entropy_hysteresis(*, low: float | Array, high: float | Array) -> Carried:
    """AEPO's state: whether sequences of A < 0 are left out (QwenLong-L1.5, 2512.12967). Writes `Rollouts.dropping`.

        dropping ← H > high, or dropping and H ≥ low;    false at first, H the mean entropy of the trained tokens, nats

    Read it by `advantage.without_negatives`. 0 ≤ low ≤ high; the paper's thresholds are unpublished. Needs
    `Rollouts.entropy`.

    >>> rollouts = Rollouts(tokens=jnp.zeros((1, 1, 2), int), mask=jnp.ones((1, 1, 2), bool), rewards=jnp.ones((1, 1)),
    ...                     old_logp=jnp.zeros((1, 1, 2)), entropy=jnp.array([[[0.5, 1.0]]]))
    >>> carried = entropy_hysteresis(low=0.25, high=0.5)
    >>> rollouts, dropping = advance(carried, carried.init(), rollouts)  # H = 0.75
    >>> bool(dropping), bool(rollouts.dropping)
    (True, True)
    """
    require_ordered(low, high, 0)
    return Carried(init=never, update=partial(switch_dropping, low=low, high=high))


def never() -> Bool[Array, ""]:
    """False."""
    return jnp.zeros((), jnp.bool_)


@ranges(low=(0, math.inf), high=(0, math.inf))
def switch_dropping(
    dropping: Bool[Array, ""],
    rollouts: Rollouts,
    *,
    entropy: Float[Array, "P G T"],
    low: float | Array,
    high: float | Array,
) -> tuple[Rollouts, Bool[Array, ""]]:
    """The update of `entropy_hysteresis`. A rollout without a trained token leaves the state as it is."""
    require_shape((), "a scalar", dropping=dropping)
    mean, any_token = _mean(entropy, rollouts.mask)
    switched = (mean > high) | (jnp.asarray(dropping) & ~(mean < low))
    dropping = jnp.where(any_token, switched, dropping)
    return dataclasses.replace(rollouts, dropping=dropping), dropping


def average_reward(*, decay: float | Array = 0.95) -> Carried:
    """A moving average of the rewards as their baseline (RAE of SPIRAL, 2506.24119). Writes `Rollouts.rewards`.

        b ← decay · b + (1 − decay) · mean R,    R ← R − b;    b = 0 at first

    The average is over the completions with a trained token, one b for all (the paper has one for each agent and role).
    decay in [0, 1). For outcome rewards [P, G]. Not verified from the paper: read in notes on it.

    >>> rollouts = Rollouts(tokens=jnp.zeros((1, 2, 1), int), mask=jnp.ones((1, 2, 1), bool),
    ...                     rewards=jnp.array([[3.0, 1.0]]), old_logp=jnp.zeros((1, 2, 1)))
    >>> carried = average_reward(decay=0.75)
    >>> rollouts, average = advance(carried, carried.init(), rollouts)
    >>> float(average), rollouts.rewards.tolist()  # ¼ · 2
    (0.5, [[2.5, 0.5]])
    """
    return Carried(init=zero, update=partial(subtract_average, decay=decay))


def zero() -> Float[Array, ""]:
    """0."""
    return jnp.zeros((), jnp.float32)


@ranges(decay=(0, 1))
def subtract_average(
    average: Float[Array, ""], rollouts: Rollouts, *, decay: float | Array
) -> tuple[Rollouts, Float[Array, ""]]:
    """The update of `average_reward`."""
    rewards = jnp.asarray(rollouts.rewards)
    require_rank("rewards", rewards, "P G")
    mean, any_token = _mean(rewards, jnp.any(rollouts.mask, axis=-1))
    average = jnp.where(any_token, decay * average + (1 - decay) * mean, average).astype(jnp.float32)
    return dataclasses.replace(rollouts, rewards=rewards - average.astype(rewards.dtype)), average


def target_entropy(
    *, target: float | Array = 0.2, step: float | Array = 0.005, initial: float | Array = 0.0
) -> Carried:
    """An entropy coefficient that follows a target (Skywork-OR1, 2505.22312). Writes `Rollouts.entropy_coefficient`.

        c ← max(0, c + step) if H < target, max(0, c − step) otherwise;    used while H ≤ target, 0 above it

    H is the mean entropy of the trained tokens, nats. The bonus itself is `penalty.adaptive_entropy`. target, step and
    initial ≥ 0. Needs `Rollouts.entropy`. Not verified from the paper: the figures are from notes on its code.

    >>> rollouts = Rollouts(tokens=jnp.zeros((1, 1, 2), int), mask=jnp.ones((1, 1, 2), bool), rewards=jnp.ones((1, 1)),
    ...                     old_logp=jnp.zeros((1, 1, 2)), entropy=jnp.array([[[0.0, 0.25]]]))
    >>> carried = target_entropy(target=0.2, step=0.5)
    >>> rollouts, coefficient = advance(carried, carried.init(), rollouts)  # H = 0.125
    >>> float(coefficient), rollouts.entropy_coefficient.tolist()
    (0.5, [[[0.5, 0.5]]])
    """
    return Carried(init=partial(starting_at, initial=initial), update=partial(approach, target=target, step=step))


@ranges(initial=(0, math.inf))
def starting_at(*, initial: float | Array) -> Float[Array, ""]:
    """The number as float32."""
    return jnp.asarray(initial, jnp.float32)


@ranges(target=(0, math.inf), step=(0, math.inf))
def approach(
    coefficient: Float[Array, ""],
    rollouts: Rollouts,
    *,
    entropy: Float[Array, "P G T"],
    target: float | Array,
    step: float | Array,
) -> tuple[Rollouts, Float[Array, ""]]:
    """The update of `target_entropy`."""
    mean, any_token = _mean(entropy, rollouts.mask)
    moved = jnp.maximum(coefficient + jnp.where(mean < target, step, -step), 0.0)
    coefficient = jnp.where(any_token, moved, coefficient).astype(jnp.float32)
    used = jnp.where(mean <= target, coefficient, 0.0)
    everywhere = jnp.broadcast_to(used, rollouts.mask.shape)
    return dataclasses.replace(rollouts, entropy_coefficient=everywhere), coefficient


def _mean(x: Array, mask: Array) -> tuple[Array, Array]:
    """The mean of x where the mask is true, and whether it is true anywhere."""
    mask = require_mask(mask)
    require_shape(mask.shape, "mask", x=x)
    x = lax.stop_gradient(jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32)))
    count = jnp.sum(mask)
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(count, 1).astype(x.dtype), count > 0
