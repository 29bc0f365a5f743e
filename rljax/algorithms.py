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
    """GRPO (2402.03300): standardised rewards, a mean over sequences of token means, PPO's clip on every token."""
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=partial(ratio.clip, low=low, high=high),
    )


def dr_grpo(*, max_length: float, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """Dr. GRPO (2503.20783): GRPO without the std, and tokens divided by the constant budget `max_length`."""
    return PolicyGradient(
        advantage=advantage.mean_baseline,
        aggregation=partial(aggregation.constant, max_length=max_length),
        ratio=partial(ratio.clip, low=low, high=high),
    )


def rloo(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """RLOO (2402.14740): leave-one-out baseline, a mean over sequences of sums, the clipped trajectory ratio.

    On-policy it is REINFORCE on whole sequences; the clip off-policy is ours.
    """
    return PolicyGradient(
        advantage=advantage.leave_one_out,
        aggregation=partial(aggregation.constant, max_length=1),
        ratio=ratio.chain(ratio.local_gradient(ratio.sequence_sum), partial(ratio.clip, low=low, high=high)),
    )


def reinforce_plus_plus(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """REINFORCE++ (2501.03262): returns whitened over the batch in place of a group's baseline, PPO's clip.

    With groups, its baseline form is `advantage.reinforce_plus_plus_baseline`.
    """
    return PolicyGradient(
        advantage=advantage.reinforce_plus_plus,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.clip, low=low, high=high),
    )


def opo() -> PolicyGradient:
    """OPO (2505.23585): the length-weighted baseline, for exactly on-policy steps: nothing is clipped."""
    return PolicyGradient(
        advantage=advantage.length_weighted,
        aggregation=aggregation.token_mean,
        ratio=ratio.token,
    )


def dapo(*, low: float | Array = 0.2, high: float | Array = 0.28, dual: float | Array | None = 3.0) -> PolicyGradient:
    """DAPO (2503.14476): GRPO with a token mean and a higher upper clip; `rewards` has its sampling and penalty."""
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.clip, low=low, high=high, dual=dual),
    )


def dppo(*, low: float | Array = 0.15, high: float | Array = 0.15, cap: float | Array = 3.0) -> PolicyGradient:
    """DPPO (2602.04879): a trust region by the change of the token's probability, not of its ratio.

    Its other form bounds a KL divergence, `ratio.kl_mask` with low = high = 0.05.
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.total_variation_mask, low=low, high=high, cap=cap),
    )


def gspo(*, low: float | Array = 3e-4, high: float | Array = 4e-4) -> PolicyGradient:
    """GSPO (2507.18071): the length-normalised ratio of the sequence, then a narrow clip."""
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(ratio.sequence_mean, partial(ratio.clip, low=low, high=high)),
    )


def gspo_token(*, low: float | Array = 3e-4, high: float | Array = 4e-4) -> PolicyGradient:
    """GSPO-token (2507.18071): GSPO's value with each token's own gradient, for advantages that vary by token."""
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(ratio.local_gradient(ratio.sequence_mean), partial(ratio.clip, low=low, high=high)),
    )


def gmpo(*, low: float | Array = 0.4, high: float | Array = 0.4) -> PolicyGradient:
    """GMPO (2507.20673): the geometric mean of clipped token ratios; bounds on ℓ itself."""
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
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(partial(ratio.power_mean, p=p), partial(ratio.clip, low=low, high=high)),
    )


def holder_schedule(step: int | Array, *, start: float = 2.0, end: float = -2.0, steps: int = 500) -> Float[Array, ""]:
    """HölderPO's p at a rollout's step: linear from `start` to `end` over `steps`, then `end` (2605.12058)."""
    require_between("steps", steps, 1)
    share = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
    return start + (end - start) * share


def cispo(*, low: float | Array | None = None, high: float | Array = 0.28) -> PolicyGradient:
    """CISPO (2506.13585): the clipped ratio as a weight of ∇log π, so that no token loses its gradient."""
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=ratio.local_gradient(partial(ratio.two_sided_clip, low=low, high=high)),
    )


def sapo(*, positive: float | Array = 1.0, negative: float | Array = 1.05) -> PolicyGradient:
    """SAPO (2511.20347): a smooth gate of each token's ratio in place of a clip."""
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=partial(ratio.soft_gate, positive=positive, negative=negative),
    )


def otb(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """OTB (2602.07078): the optimal token baseline, PPO's clip on every token, a token mean. Needs `Rollouts.proxy`.

    Its advantage varies within the sequence: pool ratios under `local_gradient` only. The unbiased baseline is
    `advantage.leave_one_out_token_baseline`; which has less variance depends on the group's size (see there).
    """
    return PolicyGradient(
        advantage=advantage.optimal_token_baseline,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.clip, low=low, high=high),
    )


def balanced_grpo(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """Balanced Aggregation (2605.04077): GRPO with a token mean on each side of the group."""
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.balanced,
        ratio=partial(ratio.clip, low=low, high=high),
    )
