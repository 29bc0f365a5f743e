"""On-policy distillation: the student π samples, and a teacher q scores the samples.

If only the teacher's log-probability of the sampled token is known, distillation is a policy gradient with the
advantage `sampled_token`. With more of the teacher's distribution, the loss is Σ w · KL(π̂ ‖ q̂), differentiated
directly. π̂ and q̂ are the two distributions renormalized over a *support* S of a few tokens per position:

    ids, _ = top_tokens(teacher_hidden, teacher_unembedding, k=32)          # [N, K], no [N, V] logits
    student = logits_at(hidden, unembedding, ids)
    teacher = logits_at(teacher_hidden, teacher_unembedding, ids)
    loss = support_loss(student, teacher, weights, support=teachers(ids))

`teachers`, `students`, `intersection` and `union` return a support; `ordinary` returns the mask for the weights. Only
the student is differentiated. Functions raise ValueError if shapes differ and TypeError if a mask is not boolean.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from pallas_kernels import token_topk
from rljax._checks import accumulators, require_mask, require_rank, require_shape, require_share
from rljax._guards import finite
from rljax._sharding import gathered, require_unsharded, rows

__all__ = [
    "Support",
    "importance_weighted",
    "intersection",
    "logits_at",
    "ordinary",
    "sampled_token",
    "students",
    "support_kl",
    "support_loss",
    "teachers",
    "top_tokens",
    "union",
]

Ids = Int[Array, "*B K"]


class Support(NamedTuple):
    """The tokens over which a divergence is computed: the `ids` [..., K] at which `valid` [..., K] is true."""

    ids: Int[Array, "*B K"]
    valid: Bool[Array, "*B K"]


def sampled_token(
    old_logp: Float[Array, "P G T"], teacher_logp: Float[Array, "P G T"], mask: Bool[Array, "P G T"]
) -> Float[Array, "P G T"]:
    """The advantage of on-policy distillation from the sampled token, without gradient.

        A_t = log q(y_t) − log π_old(y_t)

    `old_logp` and `teacher_logp` [P, G, T] are log π_old and log q of the sampled tokens, in nats; `mask` [P, G, T] is
    true at the trained tokens. Returns A, [P, G, T], in nats, not standardized; 0 at other tokens. If π = π_old, its
    expected policy gradient is the gradient of −KL(π ‖ q) per token. `support_loss` uses several tokens per position.

    >>> old_logp, teacher_logp = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 1.0]))
    >>> print(sampled_token(old_logp, teacher_logp, jnp.ones(2, bool)))
    [-0.693  0.693]
    """
    mask = require_mask(mask)
    require_shape(mask.shape, "mask", old_logp=old_logp, teacher_logp=teacher_logp)
    old_logp, teacher_logp = accumulators(old_logp=old_logp, teacher_logp=teacher_logp)
    return lax.stop_gradient(jnp.where(mask, teacher_logp - old_logp, 0.0))


def importance_weighted(
    old_logp: Float[Array, "P G T"],
    teacher_logp: Float[Array, "P G T"],
    mask: Bool[Array, "P G T"],
    *,
    gamma: float | Array = 0.5,
) -> Float[Array, "P G T"]:
    """The advantage of `sampled_token`, multiplied by a weight that is larger early in the completion (2606.22600).

        a_t = log q(y_t) − log π_old(y_t),    w_t = 1 + γ (1 − Σ_{j<t} |a_j| / Σ_j |a_j|),    A_t = w_t a_t

    This is IW-OPD. The sums are over the trained tokens of the completion; w falls from 1 + γ at the first token toward
    1. Unlike in `sampled_token`, A_t depends on other tokens. Read in TRL's code, not checked against the paper.

    Args:
      old_logp: log π_old of the sampled tokens, [P, G, T], in nats.
      teacher_logp: log q of the sampled tokens, [P, G, T], in nats.
      mask: True at the trained tokens, [P, G, T].
      gamma: γ, the greatest extra weight, in [0, 1]; 0 gives `sampled_token`.

    Returns:
      A, [P, G, T], in nats, without gradient; 0 at tokens that are not trained.

    Raises:
      ValueError: If gamma is outside [0, 1].

    >>> old_logp, teacher_logp = jnp.zeros(3), jnp.array([-1.0, 2.0, -1.0])  # w = 1 + ½ (1, ¾, ¼)
    >>> importance_weighted(old_logp, teacher_logp, jnp.ones(3, bool)).tolist()
    [-1.5, 2.75, -1.125]
    """
    require_share("gamma", gamma)
    a = gathered(sampled_token(old_logp, teacher_logp, mask), -1)
    size = jnp.abs(a)
    total = jnp.sum(size, axis=-1, keepdims=True)
    before = jnp.cumsum(size, axis=-1) - size
    w = 1 + jnp.asarray(gamma, a.dtype) * (1 - before / jnp.where(total == 0, 1.0, total))
    return lax.stop_gradient(w * a)


def ordinary(mask: Bool[Array, "*B T"], tokens: Int[Array, "*B T"], special: tuple[int, ...]) -> Bool[Array, "*B T"]:
    """The mask without special tokens, whose teacher probabilities mislead if chat templates differ (2603.25562).

    `mask` and `tokens` are [..., T]; `special` lists the ids of the special tokens. Returns a mask [..., T]. Unlike a
    Support, the result selects positions, not vocabulary entries.

    >>> ordinary(jnp.array([True, True, False]), jnp.array([5, 1, 5]), special=(0, 1)).tolist()
    [True, False, False]
    """
    mask = require_mask(mask)
    require_shape(mask.shape, "mask", tokens=tokens)
    tokens = jnp.asarray(tokens)
    ids = jnp.broadcast_to(jnp.asarray(special, tokens.dtype), (*tokens.shape, len(special)))
    return mask & ~_among(tokens[..., None], ids)[..., 0]


def teachers(ids: Ids) -> Support:
    """The support of the teacher's most likely tokens (2603.25562).

    `ids` [..., K] come from `top_tokens` of the teacher. Returns a Support with all entries valid, as does `students`.

    >>> teachers(jnp.array([[5, 2]])).valid.tolist()
    [[True, True]]
    """
    return Support(ids, jnp.ones(ids.shape, bool))


def students(ids: Ids) -> Support:
    """The support of the student's most likely tokens.

    `ids` [..., K] come from `top_tokens` of the student. Returns a Support with all entries valid, as does `teachers`.

    >>> students(jnp.array([[5, 2]])).ids.tolist()
    [[5, 2]]
    """
    return Support(ids, jnp.ones(ids.shape, bool))


def intersection(teacher_ids: Ids, student_ids: Ids) -> Support:
    """The support of the tokens that both lists contain, possibly none.

    `teacher_ids` [..., K] and `student_ids` [..., L] come from `top_tokens`. Returns a Support with the teacher's K
    ids, valid if the student's ids contain them. `union` keeps all tokens.

    >>> [x.tolist() for x in intersection(jnp.array([[5, 2]]), jnp.array([[2, 7]]))]
    [[[5, 2]], [[False, True]]]
    """
    require_shape(teacher_ids.shape[:-1], "teacher_ids' leading axes", student_ids=student_ids[..., 0])
    return Support(teacher_ids, _among(teacher_ids, student_ids))


def union(teacher_ids: Ids, student_ids: Ids) -> Support:
    """The support of the tokens that at least one of two lists contains.

    `teacher_ids` [..., K] and `student_ids` [..., L] come from `top_tokens`. Returns a Support with K + L ids, in which
    repeated ids are not valid. `intersection` keeps only the tokens of both.

    >>> [x.tolist() for x in union(jnp.array([[5, 2]]), jnp.array([[2, 7]]))]
    [[[5, 2, 2, 7]], [[True, True, False, True]]]
    """
    require_shape(teacher_ids.shape[:-1], "teacher_ids' leading axes", student_ids=student_ids[..., 0])
    ids = jnp.concatenate([teacher_ids, student_ids], axis=-1)
    new = ~_among(student_ids, teacher_ids)
    return Support(ids, jnp.concatenate([jnp.ones_like(teacher_ids, bool), new], axis=-1))


def support_kl(
    student_logits: Float[Array, "*B K"], teacher_logits: Float[Array, "*B K"], support: Support
) -> Float[Array, "*B"]:
    """The KL divergence of the student from the teacher, both renormalized over the support (2603.25562).

        KL(π̂ ‖ q̂) = Σ_{v∈S} π̂(v) log(π̂(v)/q̂(v))

    `student_logits` and `teacher_logits` [..., K] are logits at the ids of `support`, from `logits_at`; the teacher's
    are constants. Returns [...], in nats; 0 if the support is empty. Without renormalization, the student could lower
    the loss by moving mass out of S. `support_loss` is the weighted sum.

    >>> support, student, teacher = teachers(jnp.array([[5, 2]])), jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
    >>> print(support_kl(student, teacher, support))  # ½ log(½ ÷ ¾) + ½ log(½ ÷ ¼)
    [0.1438]
    """
    student_logits, teacher_logits = accumulators(student_logits=student_logits, teacher_logits=teacher_logits)
    require_shape(support.valid.shape, "support", student_logits=student_logits, teacher_logits=teacher_logits)
    valid = support.valid
    log_pi, log_q = _log_softmax(student_logits, valid), _log_softmax(lax.stop_gradient(teacher_logits), valid)
    return jnp.sum(jnp.where(valid, jnp.exp(log_pi) * (log_pi - log_q), 0.0), axis=-1)


def support_loss(
    student_logits: Float[Array, "*B K"],
    teacher_logits: Float[Array, "*B K"],
    weights: Float[Array, "*B"],
    *,
    support: Support,
) -> Float[Array, ""]:
    """The weighted sum of the divergences over the support (2603.25562).

        Σ_n w_n · KL(π̂_n ‖ q̂_n)

    As in `policy_loss`, the losses of microbatches add up if the weights were computed over the whole optimizer step. A
    position with weight 0 may hold any logits, even NaN. `support_kl` returns the divergence of each position.

    Args:
      student_logits: Logits of the student at the ids of the support, [..., K].
      teacher_logits: Logits of the teacher at these ids, [..., K]; a constant.
      weights: w, [...], from an aggregation; a constant.
      support: The tokens of each position.

    Returns:
      The loss, a scalar, in nats if the weights sum to 1.

    >>> support, student = teachers(jnp.array([[5, 2]])), jnp.zeros((1, 2))
    >>> teacher = jnp.log(jnp.array([[3.0, 1.0]]))
    >>> print(support_loss(student, teacher, jnp.array([0.5]), support=support))
    0.0719
    """
    (weights,) = accumulators(weights=weights)
    require_shape(support.valid.shape[:-1], "support's leading axes", weights=weights)
    live = Support(support.ids, support.valid & (weights != 0)[..., None])
    return jnp.sum(lax.stop_gradient(weights) * support_kl(student_logits, teacher_logits, live))


def top_tokens(
    hidden: Float[Array, "N D"], unembedding: Float[Array, "V D"], *, k: int, tile: int = 512
) -> tuple[Int[Array, "N K"], Float[Array, "N K"]]:
    """The k largest logits of each row of h·Wᵀ and their ids, largest first, from one pass over vocabulary tiles.

    Of equal logits, the lower id comes first. The results are constants; `logits_at` is differentiable.
    `pallas_kernels.token_topk` returns log-probabilities instead of logits.

    Args:
      hidden: Hidden states h, [N, D].
      unembedding: W, [V, D].
      k: Number of tokens per row, in [1, V].
      tile: Number of vocabulary rows per tile of logits.

    Returns:
      (ids, logits), both [N, k].

    Raises:
      ValueError: If k is out of range or an argument is sharded over explicit mesh axes.

    >>> hidden, unembedding = jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    >>> [x.tolist() for x in top_tokens(hidden, unembedding, k=2)]
    [[[0, 2]], [[3.0, 2.0]]]
    """
    require_unsharded(hidden=hidden, unembedding=unembedding)
    n = hidden.shape[0]
    with jax.default_matmul_precision("highest"):
        _, top = token_topk(hidden, unembedding, jnp.zeros(n, jnp.int32), k=k, tile=(max(n, 1), tile))
    largest = lax.stop_gradient(logits_at(hidden, unembedding, top.ids[:, :1]))
    return top.ids, largest + lax.stop_gradient(top.logp - top.logp[:, :1])


def logits_at(
    hidden: Float[Array, "N D"], unembedding: Float[Array, "V D"], ids: Int[Array, "N K"]
) -> Float[Array, "N K"]:
    """The logits of a few tokens per row, h·W[ids], differentiable in both arrays.

    `hidden` is h [N, D], `unembedding` is W [V, D] and `ids` [N, K] are token ids. Returns [N, K], in float64 if an
    input is float64, else float32. The gathered rows of W are an array [N, K, D]. `top_tokens` instead finds the ids.

    >>> hidden, unembedding = jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    >>> logits_at(hidden, unembedding, jnp.array([[2, 0]])).tolist()
    [[2.0, 3.0]]
    """
    require_rank("ids", ids, "N K")
    require_rank("hidden", hidden, "N D")
    require_rank("unembedding", unembedding, "V D")
    require_shape(hidden.shape[1:], "hidden's last axis", unembedding=unembedding[0])
    require_shape(ids.shape[:1], "ids' first axis", hidden=hidden[:, 0])
    hidden, chosen = accumulators(hidden=hidden, unembedding=rows(unembedding, ids))
    return jnp.einsum("nd,nkd->nk", hidden, chosen, precision=lax.Precision.HIGHEST)


def _log_softmax(logits: Array, valid: Array) -> Array:
    """log softmax over the valid entries; 0 at the other entries, which may hold anything."""
    logits = finite(logits)  # a logit of −∞ has probability 0 and a finite divergence
    top = jnp.max(lax.stop_gradient(logits), axis=-1, keepdims=True, where=valid, initial=-jnp.inf)
    shifted = jnp.where(valid, logits - jnp.where(jnp.isfinite(top), top, 0.0), 0.0)
    total = jnp.sum(jnp.where(valid, jnp.exp(shifted), 0.0), axis=-1, keepdims=True)
    return jnp.where(valid, shifted - jnp.log(jnp.where(total > 0, total, 1.0)), 0.0)


def _among(ids: Array, others: Array) -> Array:
    """True at the ids that the `others` of the same position contain."""
    return jnp.any(ids[..., :, None] == others[..., None, :], axis=-1)
