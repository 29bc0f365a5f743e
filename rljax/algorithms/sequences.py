"""One ratio for the sequence: its geometric, power or exact mean."""

from collections.abc import Callable
from functools import partial

from jax import Array
from jaxtyping import Float

from rljax import advantage, aggregation, ratio, schedule
from rljax.objective import PolicyGradient


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


def holder_po_token_clip(
    *, p: float | Array = 2.0, low: float | Array = 0.2, high: float | Array = 0.2
) -> PolicyGradient:
    """HölderPO's token clip (2605.12058): PPO's clip of each token by the sign of A, then the power mean.

    p = 1 is GRPO, p → 0 is GMPO with PPO's bounds. Defined for advantages constant in a sequence only.
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(partial(ratio.clip, low=low, high=high), partial(ratio.power_mean, p=p)),
    )


def holder_po_two_sided(
    *,
    p: float | Array = 2.0,
    limit: float | Array = 0.2,
    low: float | Array = 0.2,
    high: float | Array = 0.2,
) -> PolicyGradient:
    """HölderPO's two-sided clip (2605.12058): each ℓ held within ±log(1 + limit), then `holder_po`.

    No single token can then rule the mean at large |p|; one beyond the limit has no gradient. limit ≥ 0.
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(
            partial(ratio.two_sided_clip, low=limit / (1 + limit), high=limit),
            partial(ratio.power_mean, p=p),
            partial(ratio.clip, low=low, high=high),
        ),
    )


def holder_schedule(
    step: int | Array, *, start: float = 2.0, end: float = -2.0, steps: int = 500, shape: Callable = schedule.linear
) -> Float[Array, ""]:
    """HölderPO's p at a rollout's step: from `start` to `end` over `steps`, then `end` (2605.12058).

    Linear as in the paper's main run; `schedule.cosine`, `.power(n)` and `.cubic` are its others by name, the
    formulas ours. (ALFWorld: 1 to −1.)
    """
    return schedule.anneal(step, start=start, end=end, steps=steps, shape=shape)
