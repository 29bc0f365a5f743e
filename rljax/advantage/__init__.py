"""Advantages A: what a token deserves, once a rollout and without gradient.

Each is `f(rewards [P, G] or [P, G, T], mask [P, G, T]) -> [P, G, T]`, 0 where the mask is false. A completion whose
mask is empty is absent: it enters no statistic of its group, so ragged groups need no second path. N is the number of
present completions of a group, n_i the trained tokens of completion i. An outcome reward `[P, G]` belongs to the
completion, whatever is masked; of a dense one `[P, G, T]` the masked tokens are ignored. Functions of a completion's
reward R take the sum of a dense one; those written in G_t = Σ_{j≥t} m_j r_j take its reward-to-go.

An outcome reward that is constant in the group, up to rounding, gives exactly 0 everywhere (but for discounted
returns, GAE, and ReMax if the greedy reward is another), and so does a group of one if the baseline comes from the
group (but for `max_rl`). Nothing here has a gradient: rewards, values, proxies and all else are constants. A NaN
reward, value or proxy of a trained token gives NaN. All raise ValueError if shapes do not
fit, TypeError if the mask is not boolean.
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
