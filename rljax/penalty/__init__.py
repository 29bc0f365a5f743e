"""Penalties: weighted sums over the tokens of a batch that are added to the policy loss.

    added = 0.001 * kl(logp, batch) + 0.01 * entropy_bonus(entropy, batch)
    loss = policy_loss(logp, batch, ratio) + added

Every penalty uses `batch.weights`, so the penalties of microbatches and shards add up to the penalty of the whole step.
`kl_cov` and the selections `clip_cov` and `top_entropy` instead choose k tokens of the batch, which must be the batch
of the whole step. Tokens with weight 0 are not penalized (`aggregation.balanced` gives weight 0 if A = 0), nor are
groups that `rewards.informative` removed: to penalize them, keep the groups and replace `batch.weights`.

Only the first argument (log-probabilities, entropies or values) is differentiated; the others are constants. A token
with mask false or segment id 0 is not trained and may hold NaN. A NaN at a trained token makes a penalty NaN, and the
selections keep the token. Functions raise ValueError if shapes differ and TypeError if a mask is not boolean.

An estimator maps ℓ = log π_θ − log π_ref of a token sampled from π_θ to an estimate of KL(π_θ ‖ π_ref), in nats
(Schulman 2020, "Approximating KL divergence"). Its gradient does not in general estimate the gradient of the KL,
because the sampling is not differentiated. In expectation over samples of π_θ:

| estimator | value | gradient |
|---|---|---|
| `k1` | KL(π_θ ‖ π_ref) | 0 |
| `k2` | biased | of KL(π_θ ‖ π_ref) |
| `k3` | KL(π_θ ‖ π_ref) | of the other direction, KL(π_ref ‖ π_θ) |
| `straight_through(k3)`, the default | KL(π_θ ‖ π_ref) | of KL(π_θ ‖ π_ref) |

With samples of an older policy, all of these are biased, but `kl_corrected` is not.
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
