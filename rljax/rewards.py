"""Steps between a reward and its advantage, without gradient: dynamic sampling, length penalties, and a control."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Real

from rljax._checks import accumulators, require_between, require_mask, require_rank, require_shape, require_share
from rljax._guards import alike
from rljax._sharding import gathered

__all__ = ["improvement", "informative", "length_shaping", "overlong_penalty", "permute_within_group"]


def informative(rewards: Real[Array, "P G"], mask: Bool[Array, "P G T"]) -> Bool[Array, "P"]:
    """True for the groups whose rewards differ among the completions present: the others have advantage 0.

    Keeping these is DAPO's dynamic sampling, 0 < #correct < G for binary rewards (2503.14476). Rewards that are equal
    up to rounding do not differ; a group with a NaN is kept, so that the loss shows it.

    >>> informative(jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.ones((2, 2, 1), bool)).tolist()
    [True, False]
    """
    mask, rewards = require_mask(mask, "P G T"), jnp.asarray(rewards)
    require_shape(mask.shape[:2], "mask's leading axes", rewards=rewards)
    (rewards,) = accumulators(rewards=rewards)
    present = jnp.any(mask, axis=-1)
    return ~alike(rewards, present, axis=1)[:, 0]


def permute_within_group(rewards: Real[Array, "P G"], key: Array) -> Real[Array, "P G"]:
    """The rewards of each group in an order of its own, uniformly random: a control that must teach nothing.

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

    In tokens: 0 until the last `buffer` tokens of `max_length`, then falling linearly to −1 at `max_length`, and −1
    past it.

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
    """GRPO-λ: shorter is better among right completions, in the groups that are right most often.

        right: 1 − α·σ((n − mean n_right) / std n_right),    wrong: 0

    in the `share` of the groups with the greatest accuracy; 0/1 rewards elsewhere. A completion is right where its
    reward is above 0; mean and std (with n − 1) of the trained tokens n are over the group's right completions, and
    where that std is 0 the shaping is 1 − α/2 for all. A NaN reward stays one. share in [0, 1], alpha in [0, 1]. Not
    verified from the source: from third-party notes on the paper, which leave α open.

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
    """PIPO's ξ = (µ − µ_his)/σ_his: this batch's mean reward against the means of the K batches before it.

    0 where σ_his (with K − 1) is 0. For `advantage.policy_improvement`. Not verified from the source: from third-party
    notes on the paper, where K = 8.

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
