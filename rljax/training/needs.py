"""Fields that an algorithm or a penalty may require, with the source of each field in the trainer."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from rljax._checks import check
from rljax._expression import name_of
from rljax.objective import PolicyGradient, required_fields

ROLLOUTS: Mapping[str, str] = MappingProxyType({
    "tokens": "token ids of prompt and completion",
    "segment_ids": "1 for prompt and completion, 0 for padding",
    "old_logp": "log-probabilities under the policy before the rollout's optimizer steps",
    "sampled_logp": "log-probabilities under the sampling distribution (with temperature, top-k and top-p)",
    "ref_logp": "log-probabilities under the parameters at the start of stage 2 (RL), from an extra forward pass",
    "proxy": "the gradient-norm proxy of `TokenStats`, from an extra forward pass per rollout",
    "entropy": "the policy's entropy at each token, from the same forward pass as `proxy`",
    "values": "values from a value head on the policy (`Config.critic`)",
    "greedy_rewards": "reward of an additional, greedy completion per prompt",
    "components": "the numbers that the reward function returns; their sum is the reward",
    "task": "index of the prompt's level among the sorted level names",
})  # fmt: skip
"""Fields of `Rollouts` available to an advantage, an aggregation or the update of a carried state."""

CARRIED: Mapping[str, str] = MappingProxyType({
    "dropping": "`carried.entropy_hysteresis`",
    "entropy_coefficient": "`carried.target_entropy`",
})  # fmt: skip
"""Fields of `Rollouts` written only by a carried state, and the function that creates that state."""

BATCH: Mapping[str, str] = MappingProxyType({
    "tokens": "token ids of prompt and completion",
    "old_logp": "log-probabilities under the policy before the rollout's optimizer steps",
    "ref_logp": "log-probabilities under the parameters at the start of stage 2 (RL), from an extra forward pass",
    "divergence": "total variation from the sampling policy, on that policy's `PolicyGradient.top_k` top tokens",
})  # fmt: skip
"""Fields of `Batch` available to a ratio."""

PENALTY: Mapping[str, str] = MappingProxyType({
    "kl": "exact KL divergence from the policy before RL, from an extra forward pass per optimizer step",
})  # fmt: skip
"""Keyword-only parameters available to a penalty, in addition to its arguments (TokenStats, Batch)."""

NOT_THE_GROUPS = frozenset({"values", "greedy_rewards"})
"""Fields that an advantage requires if its baseline is not computed from the group."""


def fields_of_rollouts(algorithm: PolicyGradient) -> frozenset[str]:
    """Fields of `Rollouts` that an algorithm requires."""
    functions = [algorithm.advantage, algorithm.aggregation]
    functions += [algorithm.carried.update] if algorithm.carried else []
    return frozenset().union(*map(required_fields, functions))


def needs_of(algorithm: PolicyGradient, penalty: Callable | None) -> frozenset[str]:
    """Fields that an algorithm and a penalty require from the trainer, without those that a carried state writes."""
    named = fields_of_rollouts(algorithm) | required_fields(algorithm.ratio)
    return (named | (required_fields(penalty) if penalty else frozenset())) - CARRIED.keys()


def check_needs(algorithm: PolicyGradient, penalty: Callable | None) -> None:
    """Raises ValueError if an algorithm or a penalty requires a field that nothing supplies."""
    carried = CARRIED if algorithm.carried else {}
    places = [
        ("algorithm.advantage", algorithm.advantage, {**ROLLOUTS, **carried}),
        ("algorithm.aggregation", algorithm.aggregation, {**ROLLOUTS, **carried}),
        ("algorithm.ratio", algorithm.ratio, {**BATCH, **carried}),
    ]
    places += [("algorithm.carried.update", algorithm.carried.update, ROLLOUTS)] if algorithm.carried else []
    places += [("penalty", penalty, PENALTY)] if penalty else []
    for argument, function, supplied in places:
        for field in sorted(required_fields(function) - supplied.keys()):
            name = name_of(function)
            if field in CARRIED:
                raise ValueError(f"{argument} = {name}: requires {field!r}, which {CARRIED[field]} writes: "
                                 "expected an algorithm with PolicyGradient(carried=…)")  # fmt: skip
            raise ValueError(f"{argument} = {name}: requires {field!r}, which the trainer does not supply: expected "
                             f"{', '.join(sorted(supplied))}; or bind it with partial({name}, {field}=…)")  # fmt: skip
    check("divergence" not in required_fields(algorithm.ratio) or algorithm.top_k is not None, "algorithm.top_k",
          algorithm.top_k, "the number of likeliest tokens in the divergence, such as 20")  # fmt: skip


def check_groups(algorithm: PolicyGradient, completions: int, train_groups: int) -> None:
    """Raises ValueError if the algorithm's baseline does not allow `train_groups` or a single completion per group."""
    own = required_fields(algorithm.advantage) & NOT_THE_GROUPS
    check(not (own and train_groups), "rollout.train_groups", train_groups,
          f"0, since the algorithm's baseline does not come from the group (it needs "
          f"{', '.join(sorted(own))})")  # fmt: skip
    if completions == 1:
        check(not vanishes_alone(algorithm.advantage), "rollout.completions", completions,
              f"2 or more: {name_of(algorithm.advantage)} is 0 for a group of one completion")  # fmt: skip


def vanishes_alone(advantage: Callable) -> bool:
    """True if the advantage of a single completion per group is always 0.

    >>> from rljax import advantage
    >>> vanishes_alone(advantage.mean_baseline), vanishes_alone(advantage.reinforce_plus_plus)
    (True, False)
    """
    rewards, shape = np.array([[1.0], [0.0], [3.0]], np.float32), (3, 1, 2)
    ones = np.ones(shape, np.float32)
    examples = {
        "tokens": np.arange(6, dtype=np.int32).reshape(shape), "segment_ids": np.ones(shape, np.int32),
        "old_logp": -ones, "sampled_logp": -ones, "ref_logp": -ones, "proxy": ones, "entropy": ones, "values": 0 * ones,
        "greedy_rewards": np.zeros(3, np.float32), "components": rewards[..., None],
        "task": np.zeros(3, np.int32), "dropping": np.zeros((), bool), "entropy_coefficient": 0 * ones,
    }  # fmt: skip
    given = {name: examples[name] for name in required_fields(advantage)}
    return not np.any(np.asarray(advantage(rewards, np.ones(shape, bool), **given)))
