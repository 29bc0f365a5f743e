"""On-policy distillation: the student samples, a teacher q says what it would have done.

With the sampled token alone it is a policy gradient, whose advantage is `sampled_token`. With more of the teacher's
distribution it is a loss of its own, Σ w · KL(π̂ ‖ q̂) over a *support* S of a few tokens a position, both renormalized
over S, differentiated directly:

    ids, _ = top_tokens(teacher_hidden, teacher_unembedding, k=32)          # [N, K], no [N, V] logits
    student, teacher = logits_at(hidden, unembedding, ids), logits_at(teacher_hidden, teacher_unembedding, ids)
    loss = support_loss(student, teacher, weights, support=teachers(ids))

The supports: `teachers`, `students`, `intersection`, `union`. Weights are made from the mask of `ordinary` tokens.
Only the student is differentiated.

All raise ValueError where shapes differ.
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
    """The tokens that a divergence is taken over: `ids [*B, K]`, and `valid [*B, K]`, false where an entry is none."""

    ids: Int[Array, "*B K"]
    valid: Bool[Array, "*B K"]


def sampled_token(
    old_logp: Float[Array, "P G T"], teacher_logp: Float[Array, "P G T"], mask: Bool[Array, "P G T"]
) -> Float[Array, "P G T"]:
    """The advantage A_t = log q(y_t) − log π_old(y_t), neither centered nor scaled; 0 where the mask is false.

    Its policy gradient is that of −KL(π ‖ q), token by token.

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
    """`sampled_token`, weighted more before most of the completion's disagreement (IW-OPD, 2606.22600).

        a_t = log q(y_t) − log π_old(y_t),    w_t = 1 + γ (1 − Σ_{j<t} |a_j| / Σ_j |a_j|),    A_t = w_t a_t

    Sums are over the completion's trained tokens: the first has weight 1 + γ, and one after which nothing differs, 1.
    The loss is −Σ log π · A. gamma in [0, 1]; 0 gives `sampled_token`. Not verified: read in TRL's code, no paper text.

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
    """The mask without the special tokens (2603.25562): templates differ, so the teacher's opinion of them misleads.

    >>> ordinary(jnp.array([True, True, False]), jnp.array([5, 1, 5]), special=(0, 1)).tolist()
    [True, False, False]
    """
    mask = require_mask(mask)
    require_shape(mask.shape, "mask", tokens=tokens)
    tokens = jnp.asarray(tokens)
    ids = jnp.broadcast_to(jnp.asarray(special, tokens.dtype), (*tokens.shape, len(special)))
    return mask & ~_among(tokens[..., None], ids)[..., 0]


def teachers(ids: Ids) -> Support:
    """The teacher's likeliest tokens (2603.25562).

    >>> teachers(jnp.array([[5, 2]])).valid.tolist()
    [[True, True]]
    """
    return Support(ids, jnp.ones(ids.shape, bool))


def students(ids: Ids) -> Support:
    """The student's likeliest tokens: what it would say, judged by the teacher.

    >>> students(jnp.array([[5, 2]])).ids.tolist()
    [[5, 2]]
    """
    return Support(ids, jnp.ones(ids.shape, bool))


def intersection(teacher_ids: Ids, student_ids: Ids) -> Support:
    """The teacher's tokens that are among the student's; there may be none.

    >>> [x.tolist() for x in intersection(jnp.array([[5, 2]]), jnp.array([[2, 7]]))]
    [[[5, 2]], [[False, True]]]
    """
    require_shape(teacher_ids.shape[:-1], "teacher_ids' leading axes", student_ids=student_ids[..., 0])
    return Support(teacher_ids, _among(teacher_ids, student_ids))


def union(teacher_ids: Ids, student_ids: Ids) -> Support:
    """The teacher's tokens, then those of the student's that are not among them.

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
    """KL(π̂ ‖ q̂) = Σ_{v∈S} π̂(v) log(π̂(v)/q̂(v)), nats, both renormalized over the support; 0 where it is empty.

    Without the renormalization the mass outside of S is free, and the student puts all of it there. The teacher has
    no gradient.

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
    """Σ w · KL(π̂ ‖ q̂): a plain sum; the weights are an aggregation's. A token of weight 0 may hold anything.

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
    """(ids, logits) of each row's k largest logits of h·Wᵀ, the largest first, from one pass over vocabulary tiles.

    Of equal logits the lower id comes first. Not for differentiation: `logits_at` is. `tile` is the tokens of the
    vocabulary in a tile of logits. ValueError if an argument is sharded over explicit mesh axes: call it under
    `jax.shard_map`, or `jax.sharding.auto_axes`. `pallas_kernels.token_topk` gives log π, of a temperature, instead.

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
    """h·W[ids]: the logits of a few tokens of each row, differentiable in both. Gathers [N, K, D].

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
    """log softmax over the valid entries, 0 at the others; nothing that those hold is read."""
    logits = finite(logits)  # one of −∞ is of no mass, and its divergence from another is a number
    top = jnp.max(lax.stop_gradient(logits), axis=-1, keepdims=True, where=valid, initial=-jnp.inf)
    shifted = jnp.where(valid, logits - jnp.where(jnp.isfinite(top), top, 0.0), 0.0)
    total = jnp.sum(jnp.where(valid, jnp.exp(shifted), 0.0), axis=-1, keepdims=True)
    return jnp.where(valid, shifted - jnp.log(jnp.where(total > 0, total, 1.0)), 0.0)


def _among(ids: Array, others: Array) -> Array:
    """True at the ids that are among the others of the same position."""
    return jnp.any(ids[..., :, None] == others[..., None, :], axis=-1)
