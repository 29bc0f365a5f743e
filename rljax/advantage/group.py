"""Advantages whose baseline is computed from the completions of the same prompt."""

import math

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int

from rljax._checks import ranges, require_shape
from rljax._guards import rounding_of
from rljax._sharding import gathered
from rljax.advantage._outcomes import (
    Advantages,
    Mask,
    Rewards,
    checked,
    deviation,
    on_tokens,
    outcomes,
    spread_of,
    totals,
)


def group_relative(rewards: Rewards, mask: Mask) -> Advantages:
    """GRPO's advantage: the reward standardized within its group (2402.03300).

        A = (R − mean R)/(std R + 1e-6)

    Takes `rewards` [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. `mean_baseline` omits the std.

    >>> print(group_relative(jnp.array([[1.0, 0.0]]), jnp.ones((1, 2, 3), bool)))  # ±½ over a std of √½
    [[[ 0.7071  0.7071  0.7071]
      [-0.7071 -0.7071 -0.7071]]]
    """
    mask, centered, present, count = outcomes(rewards, mask)
    std = spread_of(centered, present, count)
    return on_tokens(deviation(centered, present, present) / (std + 1e-6), mask)


def mean_baseline(rewards: Rewards, mask: Mask) -> Advantages:
    """Dr. GRPO's advantage: the reward minus the mean of its group (2503.20783).

        A = R − mean R

    Takes `rewards` [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. `group_relative` also divides by the
    std; `leave_one_out` excludes the completion from the mean.

    >>> mean_baseline(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool)).tolist()
    [[[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]]
    """
    mask, centered, present, _ = outcomes(rewards, mask)
    return on_tokens(deviation(centered, present, present), mask)


def leave_one_out(rewards: Rewards, mask: Mask) -> Advantages:
    """RLOO's advantage: the reward minus the mean of the other completions' rewards (2402.14740).

        A_i = R_i − mean_{j≠i} R_j = N/(N − 1) · (R_i − mean R);    0 in a group of one

    Takes `rewards` [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. `mean_baseline` includes R_i.

    >>> leave_one_out(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool)).tolist()
    [[[2.0, 2.0, 2.0], [-2.0, -2.0, -2.0]]]
    """
    mask, centered, present, count = outcomes(rewards, mask)
    return on_tokens(deviation(centered, present, present) * count / jnp.maximum(count - 1, 1), mask)


def length_weighted(rewards: Rewards, mask: Mask) -> Advantages:
    """OPO's advantage: the reward minus the length-weighted mean reward of the group (2505.23585).

        A_i = R_i − Σ_j n_j R_j / Σ_j n_j

    Takes `rewards` [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. `mean_baseline` has equal weights.

    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> length_weighted(jnp.array([[1.0, 0.0]]), lengths_1_and_3).tolist()
    [[[0.75, 0.0, 0.0], [-0.25, -0.25, -0.25]]]
    """
    mask, centered, present, _ = outcomes(rewards, mask)
    lengths = jnp.sum(mask, axis=-1).astype(centered.dtype)
    return on_tokens(deviation(centered, lengths, present), mask)


def max_rl(rewards: Rewards, mask: Mask) -> Advantages:
    """MaxRL's advantage: the reward minus the mean of its group, divided by this mean (2602.02710).

        A = (R − mean R)/mean R, 0 if the mean is 0;    A = R in a group of one

    Takes `rewards` [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. For rewards 0 and 1 this weights a
    prompt by 1/mean R, so a rare success counts more. `group_relative` divides by the std. Read in prime-rl's and
    SkyRL's code (A = R in a group of one is SkyRL's), not checked against the paper.

    >>> max_rl(jnp.array([[1.0, 0.0, 0.0, 0.0]]), jnp.ones((1, 4, 1), bool))[..., 0].tolist()  # over a mean of ¼
    [[3.0, -1.0, -1.0, -1.0]]
    """
    mask, centered, present, count = outcomes(rewards, mask)
    R = jnp.where(present, totals(*checked(rewards, mask)), 0.0)
    mean, size = (jnp.sum(x, axis=1, keepdims=True) / jnp.maximum(count, 1) for x in (R, jnp.abs(R)))
    nothing = jnp.abs(mean) <= rounding_of(size)
    excess = deviation(centered, present, present) / jnp.where(nothing, 1.0, mean)
    return on_tokens(jnp.where(count == 1, R, jnp.where(nothing, 0.0, excess)), mask)


def pass_at_k(rewards: Rewards, mask: Mask) -> Advantages:
    """Advantage for pass@k: the best completion gets its lead over the second best, the others get 0 (2503.19595).

        A = R₁ − R₂ at the best completion, 0 elsewhere;    0 in a group of one

    Takes `rewards` [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. With this A, the policy gradient
    estimates the gradient of the group's expected best reward. If two completions share the best reward, A is 0.
    `standardized(pass_at_k)` divides by the std. `group_relative` gives every completion an advantage.

    >>> pass_at_k(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool)).tolist()
    [[[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]]
    """
    mask, centered, present, count = outcomes(rewards, mask)
    ranked = jnp.where(present, centered, -jnp.inf)
    best = present & (jnp.arange(ranked.shape[1])[None] == jnp.argmax(ranked, axis=1, keepdims=True))
    second = jnp.max(ranked, axis=1, keepdims=True, where=present & ~best, initial=-jnp.inf)
    lead = jnp.where(best & (count > 1), -jnp.where(count > 1, second, 0.0), 0.0)  # the best has the value 0
    return on_tokens(jnp.where(jnp.isnan(centered), centered, lead), mask)  # NaN for the completion whose reward is NaN


def task_relative(rewards: Rewards, mask: Mask, *, task: Int[Array, "P"]) -> Advantages:
    """The group's centered reward, divided by the std over all rewards of the same task (QwenLong-L1.5, 2512.12967).

        A = (R − mean R) / (std_task R + 1e-6)

    Takes `rewards` [P, G] or [P, G, T], `mask` [P, G, T] and `task` [P]; returns A [P, G, T]. `task` is an integer per
    prompt. std_task is over all present completions of the task in the batch and divides by their number minus 1 (our
    choice; the paper does not specify the divisor). `group_relative` uses the std of the group.

    >>> rewards, mask = jnp.array([[4.0, 0.0], [2.0, 2.0]]), jnp.ones((2, 2, 1), bool)
    >>> print(task_relative(rewards, mask, task=jnp.array([7, 7]))[0])  # ±2 over the std of 4, 0, 2, 2, √(8/3)
    [[ 1.2247]
     [-1.2247]]
    """
    mask, centered, present, _ = outcomes(rewards, mask)
    require_shape(mask.shape[:1], "mask's first axis", task=task)
    task = gathered(jnp.asarray(task))
    same = (task[:, None] == task[None, :]).astype(centered.dtype)
    members = present.astype(centered.dtype)
    R = jnp.where(present, totals(*checked(rewards, mask)), 0.0)

    def over_task(values):
        return jnp.matmul(same, gathered(jnp.sum(values, axis=1)), precision=lax.Precision.HIGHEST)[:, None]

    count = over_task(members)
    mean = over_task(R) / jnp.maximum(count, 1)
    # Each row of `mean` holds the mean of its task, so deviations within a task are from the same number.
    std = jnp.sqrt(over_task(members * (R - mean) ** 2) / jnp.maximum(count - 1, 1))
    return on_tokens(deviation(centered, present, present) / (std + 1e-6), mask)


@ranges(slope=(0, math.inf))
def policy_improvement(
    rewards: Rewards, mask: Mask, *, improvement: float | Array, slope: float | Array = 0.1
) -> Advantages:
    """PIPO's advantage of the *previous* batch, scaled by the improvement of the policy since then (2604.00860).

        A_i = φ(ξ) · N · a_i / Σ_j |a_j|,    a_i = R_i − mean R,    φ(ξ) = ξ if ξ ≥ 0, slope · ξ otherwise

    Takes `rewards` [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. Raises ValueError if slope < 0.
    `mean_baseline` returns a_i. Read in notes on the paper, not checked against it.

    Args:
      improvement: ξ, a scalar: mean reward minus its history's mean, over the history's std (`rewards.improvement`).
      slope: Factor on a negative ξ; at least 0.

    >>> policy_improvement(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool), improvement=0.5).tolist()  # ½ · 2 · ±1/2
    [[[0.5, 0.5, 0.5], [-0.5, -0.5, -0.5]]]
    """
    mask, centered, present, count = outcomes(rewards, mask)
    deviations = deviation(centered, present, present)
    improvement = jnp.asarray(improvement, centered.dtype)
    phi = jnp.where(improvement >= 0, improvement, jnp.asarray(slope, centered.dtype) * improvement)
    total = jnp.sum(jnp.abs(deviations), axis=1, keepdims=True)
    return on_tokens(phi * count * deviations / jnp.where(total > 0, total, 1.0), mask)
