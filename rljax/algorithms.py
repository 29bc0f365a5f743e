"""The algorithms of the field: each an advantage, an aggregation and a ratio, with its paper's hyper-parameters.

To make another, write another expression; to schedule one, make it from the step:
`lambda step: holder_po(p=holder_schedule(step))`.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rljax import advantage, aggregation, ratio
from rljax._checks import require_between
from rljax.objective import PolicyGradient

__all__ = [
    "balanced_grpo",
    "cispo",
    "ctpo",
    "dapo",
    "dppo",
    "dr_grpo",
    "gmpo",
    "grpo",
    "gspo",
    "gspo_token",
    "holder_po",
    "minpro",
    "opo",
    "otb",
    "reinforce_plus_plus",
    "rloo",
    "sapo",
]


def grpo(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """GRPO (2402.03300): standardised rewards, a mean over sequences of token means, PPO's clip on every token.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.5, 1.0, 2.0]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(grpo().ratio(jnp.log(r), A, mask)))
    [0.5 1.  1.2]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=partial(ratio.clip, low=low, high=high),
    )


def dr_grpo(*, max_length: float, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """Dr. GRPO (2503.20783): GRPO without the std, and tokens divided by the constant budget `max_length`.

    >>> import jax.numpy as jnp
    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> dr_grpo(max_length=4).aggregation(lengths_1_and_3, jnp.array([[1, -1]])).tolist()
    [[[0.125, 0.0, 0.0], [0.125, 0.125, 0.125]]]
    """
    return PolicyGradient(
        advantage=advantage.mean_baseline,
        aggregation=partial(aggregation.constant, max_length=max_length),
        ratio=partial(ratio.clip, low=low, high=high),
    )


def rloo(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """RLOO (2402.14740): leave-one-out baseline, a mean over sequences of sums, the clipped trajectory ratio.

    On-policy it is REINFORCE on whole sequences; the clip off-policy is ours.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.5, 1.0, 2.2]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(rloo().ratio(jnp.log(r), A, mask)))  # their product, 1.1, on each
    [1.1 1.1 1.1]
    """
    return PolicyGradient(
        advantage=advantage.leave_one_out,
        aggregation=partial(aggregation.constant, max_length=1),
        ratio=ratio.chain(ratio.local_gradient(ratio.sequence_sum), partial(ratio.clip, low=low, high=high)),
    )


def reinforce_plus_plus(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """REINFORCE++ (2501.03262): returns whitened over the batch in place of a group's baseline, PPO's clip.

    With groups, its baseline form is `advantage.reinforce_plus_plus_baseline`.

    >>> import jax.numpy as jnp
    >>> print(reinforce_plus_plus().advantage(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool)))  # ±1 over √(6/5)
    [[[ 0.9129  0.9129  0.9129]
      [-0.9129 -0.9129 -0.9129]]]
    """
    return PolicyGradient(
        advantage=advantage.reinforce_plus_plus,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.clip, low=low, high=high),
    )


def opo() -> PolicyGradient:
    """OPO (2505.23585): the length-weighted baseline, for exactly on-policy steps: nothing is clipped.

    >>> import jax.numpy as jnp
    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> opo().advantage(jnp.array([[1.0, 0.0]]), lengths_1_and_3).tolist()
    [[[0.75, 0.0, 0.0], [-0.25, -0.25, -0.25]]]
    """
    return PolicyGradient(
        advantage=advantage.length_weighted,
        aggregation=aggregation.token_mean,
        ratio=ratio.token,
    )


def dapo(*, low: float | Array = 0.2, high: float | Array = 0.28, dual: float | Array | None = 3.0) -> PolicyGradient:
    """DAPO (2503.14476): GRPO with a token mean and a higher upper clip; `rewards` has its sampling and penalty.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.5, 1.0, 2.0]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(dapo().ratio(jnp.log(r), A, mask)))
    [0.5  1.   1.28]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.clip, low=low, high=high, dual=dual),
    )


def dppo(*, low: float | Array = 0.15, high: float | Array = 0.15, cap: float | Array = 3.0) -> PolicyGradient:
    """DPPO (2602.04879): a trust region by the change of the token's probability, not of its ratio.

    Its other form bounds a KL divergence, `ratio.kl_mask` with low = high = 0.05.

    >>> import jax.numpy as jnp
    >>> r, A, mask, q = jnp.array([0.5, 1.0, 2.0]), jnp.ones(3), jnp.ones(3, bool), jnp.array([0.5, 0.5, 0.4])
    >>> print(jnp.exp(dppo().ratio(jnp.log(r), A, mask, old_logp=jnp.log(q))))  # p − q = −0.25, 0, 0.4
    [0.5 1.  0. ]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.total_variation_mask, low=low, high=high, cap=cap),
    )


def gspo(*, low: float | Array = 3e-4, high: float | Array = 4e-4) -> PolicyGradient:
    """GSPO (2507.18071): the length-normalised ratio of the sequence, then a narrow clip.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([1.0, 1.0, 1.331]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(gspo(low=0.2, high=0.2).ratio(jnp.log(r), A, mask)))  # ∛1.331
    [1.1 1.1 1.1]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(ratio.sequence_mean, partial(ratio.clip, low=low, high=high)),
    )


def gspo_token(*, low: float | Array = 3e-4, high: float | Array = 4e-4) -> PolicyGradient:
    """GSPO-token (2507.18071): GSPO's value with each token's own gradient, for advantages that vary by token.

    >>> import jax, jax.numpy as jnp
    >>> ratio_of, A, mask = gspo_token().ratio, jnp.ones(2), jnp.ones(2, bool)
    >>> jax.grad(lambda ℓ: ratio_of(ℓ, A, mask)[0])(jnp.zeros(2)).tolist()  # GSPO's are ½, ½
    [1.0, 0.0]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(ratio.local_gradient(ratio.sequence_mean), partial(ratio.clip, low=low, high=high)),
    )


def gmpo(*, low: float | Array = 0.4, high: float | Array = 0.4) -> PolicyGradient:
    """GMPO (2507.20673): the geometric mean of clipped token ratios; bounds on ℓ itself.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([1.0, 1.0, 9.0]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(gmpo(high=0.3).ratio(jnp.log(r), A, mask)))  # e^{0.3/3}
    [1.1052 1.1052 1.1052]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(partial(ratio.log_clip, low=low, high=high), ratio.sequence_mean),
    )


def ctpo(
    *, low: float | Array = 0.025, high: float | Array = 0.05, dual: float | Array | None = 0.05, power: float = 0.5
) -> PolicyGradient:
    """CTPO (2605.07331): the cumulative ratio of the prefix, clipped in bounds that widen as t^power.

    Aggregated by token mean as the authors' code does; the equation has `aggregation.sequence_mean`.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.5, 3.0, 0.5]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(ctpo().ratio(jnp.log(r), A, mask)))  # prefixes: 0.5; 1.5, above e^{0.05√2}; 0.75
    [0.5   1.0733 0.75  ]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=ratio.chain(
            ratio.local_gradient(ratio.cumulative),
            partial(ratio.position_clip, low=low, high=high, dual=dual, power=power),
        ),
    )


def minpro(*, low: float | Array = 0.2, high: float | Array = 0.28) -> PolicyGradient:
    """MinPRO (2601.22718): the token's ratio times the least before it, then PPO's clip.

    Not verified from the source: the ratio is from notes on the paper, its outer form and aggregation are ours.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.5, 1.2, 2.0]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(minpro().ratio(jnp.log(r), A, mask)))  # 0.5, 0.5 · 1.2, 0.5 · 2
    [0.5 0.6 1. ]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=ratio.chain(ratio.prefix_min, partial(ratio.clip, low=low, high=high)),
    )


def holder_po(*, p: float | Array = 2.0, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """HölderPO (2605.12058): the power mean of the sequence's ratios, then PPO's clip on the sequence.

    p is annealed over training (`holder_schedule`, at whose start the default stands), constant within a rollout's
    updates; it may be traced. p → 0 is GSPO with these bounds.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([1.0, 1.0, 2.5]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(holder_po(p=1.0, high=1.0).ratio(jnp.log(r), A, mask)))
    [1.5 1.5 1.5]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(partial(ratio.power_mean, p=p), partial(ratio.clip, low=low, high=high)),
    )


def holder_schedule(step: int | Array, *, start: float = 2.0, end: float = -2.0, steps: int = 500) -> Float[Array, ""]:
    """HölderPO's p at a rollout's step: linear from `start` to `end` over `steps`, then `end` (2605.12058).

    >>> [float(holder_schedule(step)) for step in (0, 125, 250, 500, 900)]
    [2.0, 1.0, 0.0, -2.0, -2.0]
    """
    require_between("steps", steps, 1)
    share = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
    return start + (end - start) * share


def cispo(*, low: float | Array | None = None, high: float | Array = 0.28) -> PolicyGradient:
    """CISPO (2506.13585): the clipped ratio as a weight of ∇log π, so that no token loses its gradient.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.5, 1.0, 2.0]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(cispo().ratio(jnp.log(r), A, mask)))
    [0.5  1.   1.28]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=ratio.local_gradient(partial(ratio.two_sided_clip, low=low, high=high)),
    )


def sapo(*, positive: float | Array = 1.0, negative: float | Array = 1.05) -> PolicyGradient:
    """SAPO (2511.20347): a smooth gate of each token's ratio in place of a clip.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.7, 1.0, 1.3]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(sapo().ratio(jnp.log(r), A, mask)))  # 4σ(−0.3), 4σ(0), 4σ(0.3)
    [1.7022 2.     2.2978]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=partial(ratio.soft_gate, positive=positive, negative=negative),
    )


def otb(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """OTB (2602.07078): the optimal token baseline, PPO's clip on every token, a token mean. Needs `Rollouts.proxy`.

    Its advantage varies within the sequence: pool ratios under `local_gradient` only. The unbiased baseline is
    `advantage.leave_one_out_token_baseline`; which has less variance depends on the group's size (see there).

    >>> import jax.numpy as jnp
    >>> proxy = jnp.array([[[1.5], [0.5]]])  # B = 3/4
    >>> otb().advantage(jnp.array([[1.0, 0.0]]), jnp.ones((1, 2, 1), bool), proxy=proxy).tolist()
    [[[0.25], [-0.75]]]
    """
    return PolicyGradient(
        advantage=advantage.optimal_token_baseline,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.clip, low=low, high=high),
    )


def balanced_grpo(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """Balanced Aggregation (2605.04077): GRPO with a token mean on each side of the group.

    >>> import jax.numpy as jnp
    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> print(balanced_grpo().aggregation(lengths_1_and_3, jnp.array([[1, -1]])))
    [[[0.5   0.    0.   ]
      [0.167 0.167 0.167]]]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.balanced,
        ratio=partial(ratio.clip, low=low, high=high),
    )
