"""Baselines from the group: a completion's reward against those of the other completions of its prompt."""

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
    """The reward standardized within its group: (R − mean)/(std + 1e-6), std with N − 1 (GRPO, 2402.03300).

    >>> print(group_relative(jnp.array([[1.0, 0.0]]), jnp.ones((1, 2, 3), bool)))  # ±½ over a std of √½
    [[[ 0.7071  0.7071  0.7071]
      [-0.7071 -0.7071 -0.7071]]]
    """
    mask, centered, present, count = outcomes(rewards, mask)
    std = spread_of(centered, present, count)
    return on_tokens(deviation(centered, present, present) / (std + 1e-6), mask)


def mean_baseline(rewards: Rewards, mask: Mask) -> Advantages:
    """The reward less its group's mean, R − mean, not divided by the std (Dr. GRPO, 2503.20783).

    >>> mean_baseline(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool)).tolist()
    [[[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]]
    """
    mask, centered, present, _ = outcomes(rewards, mask)
    return on_tokens(deviation(centered, present, present), mask)


def leave_one_out(rewards: Rewards, mask: Mask) -> Advantages:
    """The reward less the mean of the others', N/(N − 1)·(R − mean) (RLOO, 2402.14740). A group of one gets 0.

    >>> leave_one_out(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool)).tolist()
    [[[2.0, 2.0, 2.0], [-2.0, -2.0, -2.0]]]
    """
    mask, centered, present, count = outcomes(rewards, mask)
    return on_tokens(deviation(centered, present, present) * count / jnp.maximum(count - 1, 1), mask)


def length_weighted(rewards: Rewards, mask: Mask) -> Advantages:
    """The reward less the length-weighted mean, R − Σ n_j R_j / Σ n_j (OPO, 2505.23585).

    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> length_weighted(jnp.array([[1.0, 0.0]]), lengths_1_and_3).tolist()
    [[[0.75, 0.0, 0.0], [-0.25, -0.25, -0.25]]]
    """
    mask, centered, present, _ = outcomes(rewards, mask)
    lengths = jnp.sum(mask, axis=-1).astype(centered.dtype)
    return on_tokens(deviation(centered, lengths, present), mask)


def max_rl(rewards: Rewards, mask: Mask) -> Advantages:
    """The reward's excess over its group's mean, as a share of that mean (MaxRL, 2602.02710).

        (R − mean)/mean, 0 if the mean is 0

    Of rewards 0 and 1 it weighs a prompt by 1/mean: where few completions are right, each of them counts more. A group
    of one has A = R. Not verified: read in prime-rl's and SkyRL's code (the group of one in SkyRL's alone), no paper
    text.

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
    """The best completion gets its lead over the second best, R₁ − R₂; all others 0 (pass@k training, 2503.19595).

    Its expectation is the gradient of the best reward of a group's. Equal best rewards lead by 0, and so does a group
    of one. With `standardized` the lead is divided by the group's std.

    >>> pass_at_k(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool)).tolist()
    [[[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]]
    """
    mask, centered, present, count = outcomes(rewards, mask)
    ranked = jnp.where(present, centered, -jnp.inf)
    best = present & (jnp.arange(ranked.shape[1])[None] == jnp.argmax(ranked, axis=1, keepdims=True))
    second = jnp.max(ranked, axis=1, keepdims=True, where=present & ~best, initial=-jnp.inf)
    lead = jnp.where(best & (count > 1), -jnp.where(count > 1, second, 0.0), 0.0)  # the best stands at 0
    return on_tokens(jnp.where(jnp.isnan(centered), centered, lead), mask)  # the best of NaNs is not known


def task_relative(rewards: Rewards, mask: Mask, *, task: Int[Array, "P"]) -> Advantages:
    """The reward less its group's mean, over the std of the batch's rewards of the same task (QwenLong-L1.5).

        (R − group mean) / (std over the task's completions + 1e-6)

    `task [P]` numbers the task of each prompt; std with n − 1, over all present completions of the batch (the divisor
    is ours: the paper does not say).

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
    # Each prompt has its own task's mean: the deviations of a task's members are taken from one number.
    std = jnp.sqrt(over_task(members * (R - mean) ** 2) / jnp.maximum(count - 1, 1))
    return on_tokens(deviation(centered, present, present) / (std + 1e-6), mask)


@ranges(slope=(0, math.inf))
def policy_improvement(
    rewards: Rewards, mask: Mask, *, improvement: float | Array, slope: float | Array = 0.1
) -> Advantages:
    """PIPO's second look at the *previous* batch: its advantages, scaled by how much the policy has improved since.

        φ(ξ) · N · A_i / Σ_j |A_j|,    φ(ξ) = ξ where ξ ≥ 0, slope · ξ below;  A_i = R_i − mean

    `improvement` is ξ = (µ − µ_his)/σ_his, of the current batch's mean reward against those of the batches before
    (`rewards.improvement`); the step on it is clipped as any other. slope ≥ 0. Not verified from the source: from
    third-party notes on the paper.

    >>> policy_improvement(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool), improvement=0.5).tolist()  # ½ · 2 · ±1/2
    [[[0.5, 0.5, 0.5], [-0.5, -0.5, -0.5]]]
    """
    mask, centered, present, count = outcomes(rewards, mask)
    deviations = deviation(centered, present, present)
    improvement = jnp.asarray(improvement, centered.dtype)
    phi = jnp.where(improvement >= 0, improvement, jnp.asarray(slope, centered.dtype) * improvement)
    total = jnp.sum(jnp.abs(deviations), axis=1, keepdims=True)
    return on_tokens(phi * count * deviations / jnp.where(total > 0, total, 1.0), mask)
