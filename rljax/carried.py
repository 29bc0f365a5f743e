"""State carried from one rollout to the next: entropy hysteresis, an average reward, an adaptive entropy coefficient.

Each function except `advance` returns a `Carried(init, update)` for `PolicyGradient(carried=…)`. The update is called
once per rollout, before the advantage. It returns the new state and the rollouts with changed fields, which advantages
and penalties read. The trainer saves the state in its checkpoints.
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
    """Updates the carried state; call it once per rollout, before its advantage is computed.

    `carried` is the `Carried` of an algorithm, or None; `state` is `carried.init()` or the state after the previous
    rollout; `rollouts` is the whole new rollout. Returns (rollouts, state), both unchanged if `carried` is None. Raises
    ValueError if `rollouts` lacks a field that the update requires.

    >>> rollouts = Rollouts(tokens=jnp.zeros((1, 2, 1), int), mask=jnp.ones((1, 2, 1), bool),
    ...                     rewards=jnp.array([[1.0, 0.0]]), old_logp=jnp.zeros((1, 2, 1)))
    >>> carried = average_reward(decay=0.5)
    >>> rollouts, state = advance(carried, carried.init(), rollouts)
    >>> float(state), rollouts.rewards.tolist()
    (0.25, [[0.75, -0.25]])
    """
    return (rollouts, state) if carried is None else bind(carried.update, rollouts)(state, rollouts)


def entropy_hysteresis(*, low: float | Array, high: float | Array) -> Carried:
    """AEPO's switch: drop completions with A < 0 while the entropy is high (QwenLong-L1.5, 2512.12967).

        dropping ← H > high, or dropping and H ≥ low;    false at first

    H is the mean of `Rollouts.entropy` over the trained tokens, in nats. The thresholds, 0 ≤ `low` ≤ `high` in nats,
    are not in the paper. Returns a `Carried` that writes `Rollouts.dropping`, which `advantage.without_negatives`
    reads. `target_entropy` adjusts an entropy bonus. Raises ValueError if low < 0 or low > high.

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
    """The update of `entropy_hysteresis`; without a trained token, the state does not change."""
    require_shape((), "a scalar", dropping=dropping)
    mean, any_token = _mean(entropy, rollouts.mask)
    switched = (mean > high) | (jnp.asarray(dropping) & ~(mean < low))
    dropping = jnp.where(any_token, switched, dropping)
    return dataclasses.replace(rollouts, dropping=dropping), dropping


def average_reward(*, decay: float | Array = 0.95) -> Carried:
    """A moving average of the rewards as their baseline (RAE of SPIRAL, 2506.24119).

        b ← decay · b + (1 − decay) · mean R,    R ← R − b;    b = 0 at first

    `decay` in [0, 1) is the weight of the old average. The mean is over the completions that have a trained token, and
    b is in units of reward. Returns a `Carried` that writes `Rollouts.rewards`, which must be [P, G]. Unlike the group
    mean of `advantage.mean_baseline`, b also depends on earlier rollouts. Raises ValueError if decay is outside [0, 1).
    From third-party notes, not checked against the paper. In the notes each agent has its own b; here all share one b.

    >>> rollouts = Rollouts(tokens=jnp.zeros((1, 2, 1), int), mask=jnp.ones((1, 2, 1), bool),
    ...                     rewards=jnp.array([[1.0, 0.0]]), old_logp=jnp.zeros((1, 2, 1)))
    >>> carried = average_reward(decay=0.5)
    >>> rollouts, average = advance(carried, carried.init(), rollouts)
    >>> float(average), rollouts.rewards.tolist()
    (0.25, [[0.75, -0.25]])
    """
    return Carried(init=zero, update=partial(subtract_average, decay=decay))


def zero() -> Float[Array, ""]:
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
    """An entropy coefficient that moves toward a target entropy (Skywork-OR1, 2505.22312).

        c ← max(0, c + step) if H < target, else max(0, c − step);    c = initial at first

    H is the mean of `Rollouts.entropy` over the trained tokens, in nats. `target` ≥ 0 is in nats; `step` ≥ 0 and
    `initial` ≥ 0 are in units of the coefficient c. Returns a `Carried` that sets `Rollouts.entropy_coefficient` to c,
    or to 0 if H > target. `penalty.adaptive_entropy` reads this field; `penalty.entropy_bonus` has a fixed coefficient.
    Raises ValueError if an argument is negative. From notes on the authors' code, not checked against the paper.

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
    """The mean of x over the entries where the mask is true, and whether the mask is true anywhere."""
    mask = require_mask(mask)
    require_shape(mask.shape, "mask", x=x)
    x = lax.stop_gradient(jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32)))
    count = jnp.sum(mask)
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(count, 1).astype(x.dtype), count > 0
