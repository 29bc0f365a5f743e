"""Names that an algorithm or a penalty may ask for, and how the trainer supplies each."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from rljax._checks import check
from rljax._expression import name_of
from rljax.objective import PolicyGradient, required_fields

ROLLOUTS: Mapping[str, str] = MappingProxyType({
    "tokens": "prompt and completion of each row",
    "segment_ids": "1 on prompt and completion, 0 on padding",
    "old_logp": "log-probabilities under the policy at the start of the rollout's optimizer steps",
    "sampled_logp": "log-probabilities of the distribution that was sampled from",
    "ref_logp": "one more forward pass, of the parameters at the start of stage 2",
    "proxy": "one more forward pass per rollout",
    "entropy": "the same forward pass as for `proxy`",
    "values": "a value head on the policy (`Config.critic`)",
    "greedy_rewards": "one greedy completion per prompt, verified",
    "components": "the numbers that the reward function returns, one or several",
    "task": "the level of each prompt, numbered in sorted order",
})  # fmt: skip
"""Fields of `Rollouts` for an advantage, an aggregation or the update of a carried state."""

CARRIED: Mapping[str, str] = MappingProxyType({
    "dropping": "`carried.entropy_hysteresis`",
    "entropy_coefficient": "`carried.target_entropy`",
})  # fmt: skip
"""Fields of `Rollouts` that only a carried state writes."""

BATCH: Mapping[str, str] = MappingProxyType({
    "tokens": "prompt and completion of each row",
    "old_logp": "log-probabilities under the policy at the start of the rollout's optimizer steps",
    "ref_logp": "one more forward pass, of the parameters at the start of stage 2",
    "divergence": "total variation from the sampling policy over its `PolicyGradient.top_k` likeliest tokens",
})  # fmt: skip
"""Fields of `Batch` for a ratio."""

PENALTY: Mapping[str, str] = MappingProxyType({
    "kl": "one more forward pass per optimizer step: the exact KL divergence from the start of stage 2",
})  # fmt: skip
"""Keyword-only parameters of a penalty, beside its (TokenStats, Batch)."""

NOT_THE_GROUPS = frozenset({"values", "greedy_rewards"})
"""What an advantage names if its baseline is not that of its group."""


def fields_of_rollouts(algorithm: PolicyGradient) -> frozenset[str]:
    """The fields of `Rollouts` that an algorithm names."""
    functions = [algorithm.advantage, algorithm.aggregation]
    functions += [algorithm.carried.update] if algorithm.carried else []
    return frozenset().union(*map(required_fields, functions))


def needs_of(algorithm: PolicyGradient, penalty: Callable | None) -> frozenset[str]:
    """The names that the functions of an algorithm and the penalty require, those of a carried state left out."""
    named = fields_of_rollouts(algorithm) | required_fields(algorithm.ratio)
    return (named | (required_fields(penalty) if penalty else frozenset())) - CARRIED.keys()


def check_needs(algorithm: PolicyGradient, penalty: Callable | None) -> None:
    """Raises ValueError, naming function and field, if an algorithm or a penalty asks for what nothing supplies."""
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
                                 "give PolicyGradient(carried=…)")  # fmt: skip
            raise ValueError(f"{argument} = {name}: requires {field!r}, which the trainer does not supply: expected "
                             f"{', '.join(sorted(supplied))}; or bind it, partial({name}, {field}=…)")  # fmt: skip
    check("divergence" not in required_fields(algorithm.ratio) or algorithm.top_k is not None, "algorithm.top_k",
          algorithm.top_k, "the number of likeliest tokens that the divergence is taken over, such as 20")  # fmt: skip


def check_groups(algorithm: PolicyGradient, completions: int, train_groups: int) -> None:
    """Raises ValueError if groups are chosen by a signal that the algorithm does not need, or are too small for it."""
    own = required_fields(algorithm.advantage) & NOT_THE_GROUPS
    check(not (own and train_groups), "rollout.train_groups", train_groups,
          f"0: the algorithm's baseline is not its group's (it needs {', '.join(sorted(own))})")  # fmt: skip
    if completions == 1:
        check(not vanishes_alone(algorithm.advantage), "rollout.completions", completions,
              f"2 or more: {name_of(algorithm.advantage)} of a group of one is 0, so nothing is learned")  # fmt: skip


def vanishes_alone(advantage: Callable) -> bool:
    """True if the advantage is 0 on groups of one completion, whatever they earn.

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
