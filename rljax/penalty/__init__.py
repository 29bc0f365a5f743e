"""Penalties: weighted sums over a batch's tokens that are simply added to the policy loss.

    loss = policy_loss(logp, batch, ratio) + 0.001 * kl(logp, batch) + 0.01 * entropy_bonus(entropy, batch)

All use the batch's weights, so microbatches and shards add here too; but what chooses tokens by covariance (`kl_cov`,
`clip_cov`) takes its means and its k over the batch it is given: give it the whole step's. An aggregation that gives
some tokens no weight (`balanced`, where A = 0) exempts them, and so does leaving out the groups that
`rewards.informative` finds to carry no signal: to penalize them, `dataclasses.replace` the weights, or keep them in the
batch.

Only the first argument (logp, the entropy, the values, …) is differentiated: all else, the whole batch among it, is a
constant. A token with mask false or segment id 0 is not trained and may hold anything; a NaN of a trained token gives
NaN, and a selection keeps it.

An estimator maps ℓ = log π_θ − log π_ref of a token sampled from π_θ to an estimate of KL(π_θ ‖ π_ref), nats
(Schulman 2020, "Approximating KL divergence"). Its value and its gradient are two matters, since the samples are not
differentiated. With samples of π_θ:

| estimator | value | gradient |
|---|---|---|
| `k1` | KL(π_θ ‖ π_ref) | 0 |
| `k2` | biased | that of KL(π_θ ‖ π_ref) |
| `k3` | KL(π_θ ‖ π_ref) | that of the other direction, KL(π_ref ‖ π_θ) |
| `straight_through(k3)`, the default | KL(π_θ ‖ π_ref) | that of KL(π_θ ‖ π_ref) |

With samples of an older policy all of these are off, and `kl_corrected` is not.
"""

from rljax.penalty.estimators import k1, k2, k3, kl, kl_corrected, kl_cov, quadratic, straight_through
from rljax.penalty.selection import clip_cov, confident_negatives, covariance, top_entropy
from rljax.penalty.values import adaptive_entropy, entropy_bonus, exact_kl, value_loss

__all__ = [
    "adaptive_entropy",
    "clip_cov",
    "confident_negatives",
    "covariance",
    "entropy_bonus",
    "exact_kl",
    "k1",
    "k2",
    "k3",
    "kl",
    "kl_corrected",
    "kl_cov",
    "quadratic",
    "straight_through",
    "top_entropy",
    "value_loss",
]
