"""Functions of rewards that run before the advantage: dynamic sampling, length penalties, controls.

The results have no gradient. Functions raise ValueError if shapes differ and TypeError if a mask is not boolean.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Real

from rljax._checks import accumulators, require_between, require_mask, require_rank, require_shape, require_share
from rljax._guards import alike
from rljax._sharding import gathered

__all__ = ["improvement", "informative", "length_shaping", "overlong_penalty", "permute_within_group"]


def informative(rewards: Real[Array, "P G"], mask: Bool[Array, "P G T"]) -> Bool[Array, "P"]:
    """True for the groups whose rewards differ, [P]: DAPO's dynamic sampling keeps only these groups (2503.14476).

    `rewards` [P, G] are in any unit, and `mask` [P, G, T] is true at the trained tokens; completions without a trained
    token are ignored. In the dropped groups, rewards are equal up to rounding and group-relative advantages are 0. A
    group with a NaN is kept, so that the loss becomes NaN. `regression.solvable` is A2PO's selection.

    >>> informative(jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.ones((2, 2, 1), bool)).tolist()
    [True, False]
    """
    mask, rewards = require_mask(mask, "P G T"), jnp.asarray(rewards)
    require_shape(mask.shape[:2], "mask's leading axes", rewards=rewards)
    (rewards,) = accumulators(rewards=rewards)
    present = jnp.any(mask, axis=-1)
    return ~alike(rewards, present, axis=1)[:, 0]


def permute_within_group(rewards: Real[Array, "P G"], key: Array) -> Real[Array, "P G"]:
    """The rewards of each group in random order: a control run with these rewards must not learn.

    `key` is a random key. Returns [P, G]. Unlike in `length_shaping`, the mean and std of a group do not change.

    >>> shuffled = permute_within_group(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jax.random.key(0))
    >>> jnp.sort(shuffled, axis=1).tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """
    rewards = jnp.asarray(rewards)
    require_rank("rewards", rewards, "P G")
    return lax.stop_gradient(jax.random.permutation(key, gathered(rewards), axis=1, independent=True))


def overlong_penalty(lengths: Real[Array, "..."], *, max_length: float, buffer: float) -> Float[Array, "..."]:
    """DAPO's soft penalty on long completions, to be added to the reward (2503.14476).

        clip(−(length − (max_length − buffer)) / buffer, −1, 0)

    `lengths` [...], `max_length` ≥ 1 and `buffer` > 0 are in tokens. Returns [...], in units of reward: 0 up to
    max_length − buffer, then falling linearly to −1 at max_length. Unlike `length_shaping`, it does not depend on the
    other completions of the group. Raises ValueError if max_length or buffer is out of range.

    >>> overlong_penalty(jnp.array([70, 90, 100, 180]), max_length=100, buffer=20).tolist()
    [0.0, -0.5, -1.0, -1.0]
    """
    require_between("max_length", max_length, 1)
    require_between("buffer", buffer, 1e-30)
    (lengths,) = accumulators(lengths=lengths)
    return lax.stop_gradient(jnp.clip((max_length - buffer - lengths) / buffer, -1.0, 0.0))


def length_shaping(
    rewards: Real[Array, "P G"], mask: Bool[Array, "P G T"], *, share: float = 0.2, alpha: float | Array = 0.2
) -> Float[Array, "P G"]:
    """GRPO-λ's length shaping: in the most accurate groups, a shorter correct completion has a higher reward.

        1 − α·σ((n − mean n) / std n) if correct, else 0

    A completion is correct if its reward is above 0. n is its number of trained tokens; mean and std (divisor N − 1)
    are over the group's N correct completions; σ is the sigmoid. If the std is 0, the shaped reward is 1 − α/2. In the
    other groups, a correct completion has reward 1. A NaN stays NaN. Unlike `overlong_penalty`, it does not need a
    maximum length. From third-party notes, which leave α open; not checked against the paper.

    Args:
      rewards: Rewards, [P, G], positive if correct.
      mask: True at the trained tokens, [P, G, T].
      share: Share of the groups that is shaped, in [0, 1].
      alpha: α, the greatest reduction of a reward, in [0, 1].

    Returns:
      The new rewards, [P, G].

    Raises:
      ValueError: If share or alpha is outside [0, 1].

    >>> lengths_1_3_2 = jnp.array([[[1, 0, 0], [1, 1, 1], [1, 1, 0]]], bool)
    >>> print(length_shaping(jnp.array([[1.0, 1.0, 0.0]]), lengths_1_3_2, share=1.0))  # 1 − 0.2 σ(∓1/√2)
    [[0.934 0.866 0.   ]]
    """
    require_share("share", share)
    require_share("alpha", alpha)
    mask = require_mask(mask, "P G T")
    require_shape(mask.shape[:2], "mask's leading axes", rewards=rewards)
    (rewards,) = accumulators(rewards=rewards)
    present = jnp.any(mask, axis=-1)
    right = present & (rewards > 0)
    lengths = jnp.sum(mask, axis=-1).astype(rewards.dtype)
    count = jnp.sum(right, axis=1, keepdims=True).astype(rewards.dtype)
    deviations = lengths - jnp.sum(jnp.where(right, lengths, 0.0), axis=1, keepdims=True) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.where(right, deviations**2, 0.0), axis=1, keepdims=True)
    std = jnp.sqrt(squares / jnp.maximum(count - 1, 1))
    shaped = 1 - jnp.asarray(alpha, rewards.dtype) * jax.nn.sigmoid(deviations / jnp.where(std > 0, std, jnp.inf))

    accuracy = count[:, 0] / jnp.maximum(jnp.sum(present, axis=1), 1).astype(rewards.dtype)
    shortened = jnp.argsort(jnp.argsort(-gathered(accuracy))) < round(share * rewards.shape[0])
    outcome = jnp.where(right, jnp.where(shortened[:, None], shaped, 1.0), 0.0)
    return lax.stop_gradient(jnp.where(present & jnp.isnan(rewards), rewards, outcome))


def improvement(
    rewards: Real[Array, "P G"], mask: Bool[Array, "P G T"], history: Float[Array, "K"]
) -> Float[Array, ""]:
    """PIPO's policy improvement ξ: the mean reward of a rollout, standardized by the means of the K rollouts before it.

        ξ = (mean R − mean history) / std history,    std with divisor K − 1;    ξ = 0 if the std is 0

    `rewards` R are [P, G], `mask` [P, G, T] is true at the trained tokens, and completions without one are ignored.
    `history` [K] has the earlier mean rewards. Returns a scalar without unit for `advantage.policy_improvement`. Unlike
    `carried.average_reward`, ξ is standardized. From third-party notes, where K = 8; not checked against the paper.

    >>> rewards, mask = jnp.array([[1.0, 0.0]]), jnp.ones((1, 2, 1), bool)
    >>> float(improvement(rewards, mask, jnp.array([0.0, 0.25, 0.5])))  # (½ − ¼)/¼
    1.0
    """
    mask = require_mask(mask, "P G T")
    require_shape(mask.shape[:2], "mask's leading axes", rewards=rewards)
    require_rank("history", jnp.asarray(history), "K")
    rewards, history = accumulators(rewards=rewards, history=history)
    present = jnp.any(mask, axis=-1)
    mean = jnp.sum(jnp.where(present, rewards, 0.0)) / jnp.maximum(jnp.sum(present), 1).astype(rewards.dtype)
    deviations = history - jnp.mean(history)
    std = jnp.sqrt(jnp.sum(deviations**2) / max(history.shape[0] - 1, 1))
    same = jnp.squeeze(alike(history, jnp.ones(history.shape, bool)))
    xi = (mean - jnp.mean(history)) / jnp.where(same, 1.0, std)
    return lax.stop_gradient(jnp.where(same & ~jnp.isnan(mean), 0.0, xi))
