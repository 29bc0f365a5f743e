"""Policy optimization as regression (A2PO): the log-ratio to π_ref is fitted to R − V*, with V* from samples of π_ref.

    A = optimal_advantage(rewards, mask, reference_rewards=reference_rewards)
    mask = mask & solvable(reference_rewards)[:, None, None]
    weights = aggregation.sequence_mean(mask, aggregation.side(A, mask))
    loss = a2po(logp, Batch(mask=mask, advantages=A, weights=weights, ref_logp=…, …))

`reference_rewards` [P, N] are the rewards of N completions per prompt (N = 8 in TRL), sampled once from π_ref. The
formulas were read in TRL's code and not checked against a paper.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from rljax import _segments
from rljax._checks import accumulators, require_between, require_rank, require_shape
from rljax.advantage._outcomes import Advantages, Mask, Rewards, checked, on_tokens, totals
from rljax.objective import Batch
from rljax.penalty._weighted import Tokens, trained, weighted_sum

__all__ = ["a2po", "optimal_advantage", "solvable"]


def optimal_advantage(
    rewards: Rewards, mask: Mask, *, reference_rewards: Float[Array, "P N"], beta: float | Array = 0.5
) -> Advantages:
    """The advantage R − V*, where V* is the optimal value of the prompt under a KL penalty with coefficient β.

        A = R − V*,    V* = β log mean_i e^{R_i/β} over the N samples of π_ref

    V* is close to the mean of the R_i for a large β and to their maximum for a small β. Unlike in
    `advantage.group_relative`, the baseline comes from samples of π_ref, not from the group.

    Args:
      rewards: R, [P, G], or rewards per token, [P, G, T], with sum R over the trained tokens.
      mask: True at the trained tokens, [P, G, T].
      reference_rewards: R_i, [P, N], in units of reward.
      beta: β, in units of reward; beta > 0.

    Returns:
      A, [P, G, T], in units of reward, without gradient; 0 at tokens that are not trained.

    Raises:
      ValueError: If shapes differ or beta ≤ 0.
      TypeError: If the mask is not boolean.

    >>> reference_rewards = jnp.log(jnp.array([[1.0, 3.0]]))  # V* = log 2 with β = 1
    >>> rewards, mask = jnp.log(jnp.array([[2.0, 4.0]])), jnp.ones((1, 2, 1), bool)
    >>> print(optimal_advantage(rewards, mask, reference_rewards=reference_rewards, beta=1.0)[0])
    [[0.    ]
     [0.6931]]
    """
    require_between("beta", beta, 1e-30)
    rewards, mask = checked(rewards, mask)
    require_rank("reference_rewards", jnp.asarray(reference_rewards), "P N")
    require_shape(mask.shape[:1], "mask's first axis", reference_rewards=reference_rewards[..., 0])
    rewards, reference_rewards = accumulators(rewards=rewards, reference_rewards=reference_rewards)
    beta, number = jnp.asarray(beta, rewards.dtype), reference_rewards.shape[1]
    value = beta * (jax.nn.logsumexp(reference_rewards / beta, axis=1, keepdims=True) - jnp.log(float(number)))
    return on_tokens(totals(rewards, mask) - value, mask)


def solvable(reference_rewards: Float[Array, "P N"]) -> Bool[Array, "P"]:
    """True for the prompts with a sample of π_ref whose reward is above 0, [P]; A2PO trains on these prompts only.

    A prompt with a NaN is kept, so that the loss becomes NaN. Unlike `rewards.informative`, `solvable` keeps a prompt
    whose rewards are all equal and positive. Raises ValueError if `reference_rewards` is not [P, N].

    >>> solvable(jnp.array([[0.0, 1.0], [0.0, 0.0]])).tolist()
    [True, False]
    """
    reference_rewards = jnp.asarray(reference_rewards)
    require_rank("reference_rewards", reference_rewards, "P N")
    return jnp.any(~(reference_rewards <= 0), axis=1)


def a2po(logp: Tokens, batch: Batch, *, beta: float | Array = 1e-3) -> Float[Array, ""]:
    """The A2PO loss, the squared error between the scaled log-ratio of a completion and its advantage.

        Σ_t w_t (β s_t − A_t)²,    s_t = Σ_j (logp_j − ref_logp_j) over the trained tokens of t's sequence

    `logp` [..., T] is log π_θ in nats, which is differentiated. `batch` has w, ref_logp and A from `optimal_advantage`.
    `beta` > 0, in units of reward per nat, is not the β of `optimal_advantage`. Returns a scalar: with
    `aggregation.sequence_mean`, the mean over completions of (β s − A)². This mean and s are our reading of TRL's code.
    Unlike `policy_loss`, it has no ratio to π_old. Raises ValueError if ref_logp is None, shapes differ or beta ≤ 0.

    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), advantages=jnp.full(2, 0.5),
    ...               weights=jnp.array([0.5, 0.5]), ref_logp=jnp.array([-1.0, -2.0]))
    >>> float(a2po(jnp.array([-0.5, -1.5]), batch, beta=1.0))  # s = 1: (1 − ½)²
    0.25
    """
    require_between("beta", beta, 1e-30)
    mask = trained(batch)
    if batch.ref_logp is None:
        raise ValueError(
            "Batch.ref_logp = None: expected log π_ref of the batch's tokens; pass Rollouts(ref_logp=…) to make_batch"
        )
    arrays = {"ref_logp": batch.ref_logp, "advantages": batch.advantages, "weights": batch.weights}
    require_shape(mask.shape, "mask", logp=logp, **arrays)
    logp, *constants = (jnp.where(mask, x, 0.0) for x in accumulators(logp=logp, **arrays))
    ref_logp, A, weights = lax.stop_gradient(constants)
    live = weights != 0
    s = _segments.total(logp - ref_logp, mask if batch.segment_ids is None else jnp.where(mask, batch.segment_ids, 0))
    difference = jnp.asarray(beta, logp.dtype) * jnp.where(live, s, 0.0) - A
    return weighted_sum(weights, difference**2, live)
