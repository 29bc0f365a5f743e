"""Advantages A: the credit of each token, computed once per rollout and without gradient.

An advantage is called as `f(rewards, mask)` and returns A [P, G, T] for P prompts, G completions per prompt (a group)
and T tokens; A is 0 at untrained tokens. `mask` [P, G, T] is true at trained tokens. A completion without a trained
token is absent: no statistic of its group includes it. `rewards` is an outcome reward [P, G], which belongs to the
completion even if its last tokens are masked, or a dense reward [P, G, T], whose values at masked tokens are ignored.

Symbols: R is the reward of a completion, the sum of a dense reward. G_t is the reward-to-go: R if the reward is an
outcome, Σ_{j≥t} m_j r_j for a dense reward r and the mask m. N is the number of completions present in the group, and
n_i the number of trained tokens of completion i; t counts these tokens from 1. Unless noted, mean and std are over the
group, and std divides by N − 1. A has the unit of `rewards` unless normalized.

Required keyword-only parameters (`proxy`, `values`, …) are filled in from the fields of `Rollouts` with these names.
Bind hyper-parameters with `functools.partial`. Results are float64 if an input is float64, else float32.

A is exactly 0 in a group whose outcome rewards are equal up to rounding and, except in `max_rl`, in a group of one.
Neither holds for discounted returns, GAE, ReMax if the greedy reward differs, or whitened advantages, from which the
batch's mean is subtracted. A NaN reward, value or proxy of a trained token gives NaN. All functions raise ValueError if
shapes differ, and TypeError if `mask` is not boolean.
"""

from rljax.advantage.combine import multi_reward, standardized, whiten, whitened, without_negatives
from rljax.advantage.group import (
    group_relative,
    leave_one_out,
    length_weighted,
    max_rl,
    mean_baseline,
    pass_at_k,
    policy_improvement,
    task_relative,
)
from rljax.advantage.prefix_tree import prefix_tree
from rljax.advantage.returns import (
    discounted_returns,
    generalized_advantage_estimation,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    remax,
)
from rljax.advantage.token_baseline import (
    exact_energy_baseline,
    leave_one_out_token_baseline,
    optimal_token_baseline,
)

__all__ = [
    "discounted_returns",
    "exact_energy_baseline",
    "generalized_advantage_estimation",
    "group_relative",
    "leave_one_out",
    "leave_one_out_token_baseline",
    "length_weighted",
    "max_rl",
    "mean_baseline",
    "multi_reward",
    "optimal_token_baseline",
    "pass_at_k",
    "policy_improvement",
    "prefix_tree",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "standardized",
    "task_relative",
    "whiten",
    "whitened",
    "without_negatives",
]
