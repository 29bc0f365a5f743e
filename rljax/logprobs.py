"""Sharded log-probabilities, entropies and KL divergences of a model's tokens, from hidden states and the unembedding.

hidden[t − 1] predicts token t, so position 0 has no prediction and gets 0.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import TokenStats, token_kl, token_stats
from rljax._checks import require_shape
from rljax.distillation import logits_at

SoftCap = float | Float[Array, ""] | None
Bias = Float[Array, " V"] | None
BANNED = -1e30  # a token with z/τ ≤ this is banned, as in token_stats

__all__ = ["delayed", "logps_at", "preceding", "token_kls", "token_logps"]


def token_logps(
    hidden: Float[Array, "*B T D"],
    unembedding: Float[Array, "V D"],
    tokens: Int[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    softcap: SoftCap = None,
    bias: Bias = None,
    vocab_size: int | None = None,
    mesh: Mesh | None = None,
    split: P | None = None,
    implementation: str | None = None,
) -> TokenStats:
    """The log-probability, the entropy and the proxy of every token, from a model's hidden states.

        π_t = softmax((hidden[t−1]·Wᵀ + b)/τ),    logp[t] = log π_t(tokens[t])

    `pallas_kernels.token_stats` defines the three statistics, soft caps and banned tokens, for rows that are already
    aligned with their tokens; `token_kls` compares two models. A masked token, and the hidden state that predicts it,
    may hold anything. On a mesh (axes of AxisType.Auto), tokens are divided over all axes except the axis of the
    vocabulary; values and gradients equal those on one device (tests/logprobs_test.py).

    Args:
      hidden: Hidden states, [..., T, D].
      unembedding: W, [V, D].
      tokens: Token ids, [..., T]; an id outside the vocabulary counts as masked.
      mask: True at the tokens to score, [..., T].
      temperature: τ, without unit; τ > 0.
      softcap: Soft cap c of the logits, or None.
      bias: b, [V], or None; −∞ bans a token.
      vocab_size: Number of tokens; further rows of W are padding. None means all V rows.
      mesh: Device mesh, or None for one device.
      split: Sharding of W on the mesh: P("tensor", "fsdp") splits the vocabulary over tensor and the width over fsdp;
        P() or None replicates W. The bias is split like the vocabulary.
      implementation: Name of a kernel implementation, or None for the platform's default.

    Returns:
      TokenStats(logp in nats, entropy in nats, proxy), [..., T] each; 0 at masked tokens and at t = 0.

    Raises:
      ValueError: If shapes do not fit each other, or split does not name axes of the mesh.
      TypeError: If the mask is not boolean, or tokens are not signed integers.

    >>> import jax.numpy as jnp
    >>> hidden, unembedding = jnp.zeros((1, 3, 8)), jnp.ones((4, 8))
    >>> stats = token_logps(hidden, unembedding, jnp.array([[3, 1, 2]]), jnp.array([[True, False, True]]))
    >>> [round(float(value), 4) for value in stats.logp[0]]
    [0.0, 0.0, -1.3863]
    """
    _check("token_logps", hidden, unembedding, tokens, mask)
    targets = jnp.where(mask, tokens, -1)

    vocabulary, width = _axes(mesh, split)

    def stats(rows, y, unembedding, options):
        return token_stats(rows, unembedding, y, **options, vocab_size=vocab_size, axis_name=vocabulary,
                           width_axis=width, implementation=implementation)  # fmt: skip

    rows, y = _flat(hidden), _advanced(targets, -1).reshape(-1)
    options = {"temperature": temperature, "softcap": softcap, "bias": bias}
    specs = {"temperature": P(), "softcap": P(), "bias": P(vocabulary)}
    found = _divided(stats, mesh, 2, (P(vocabulary, width), specs), vocabulary)(rows, y, unembedding, options)
    return TokenStats(*(delayed(stat.reshape(tokens.shape)) for stat in found))


def token_kls(
    hidden: Float[Array, "*B T D"],
    unembedding: Float[Array, "V D"],
    ref_hidden: Float[Array, "*B T E"],
    ref_unembedding: Float[Array, "V E"],
    mask: Bool[Array, "*B T"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    softcap: SoftCap | tuple[SoftCap, SoftCap] = None,
    bias: Bias | tuple[Bias, Bias] = None,
    mesh: Mesh | None = None,
    implementation: str | None = None,
) -> Float[Array, "*B T"]:
    """The exact KL divergence of the policy from a reference at every token, over the whole vocabulary.

        KL(π_t ‖ ρ_t) = Σ_v π_t(v) (log π_t(v) − log ρ_t(v)),    ρ the reference

    `pallas_kernels.token_kl` defines soft caps and banned tokens, for aligned rows. `penalty.exact_kl` sums the result.
    `penalty.kl` instead estimates the KL from the sampled tokens.

    Args:
      hidden: Hidden states of the policy, [..., T, D].
      unembedding: W of the policy, [V, D].
      ref_hidden: Hidden states of the reference, [..., T, E]; constants.
      ref_unembedding: W of the reference, [V, E]; a constant.
      mask: True at the tokens to score, [..., T].
      temperature: τ of both, without unit; τ > 0.
      softcap: Soft cap of both, or a pair: the policy's, then the reference's.
      bias: Bias [V] of both, or a pair: the policy's, then the reference's.
      mesh: Device mesh, or None for one device; W is replicated.
      implementation: Name of a kernel implementation, or None for the platform's default.

    Returns:
      KL, [..., T], in nats; 0 at masked tokens and at t = 0.

    Raises:
      ValueError: If shapes do not fit each other.
      TypeError: If the mask is not boolean.

    >>> hidden, mask = jnp.ones((2, 1)), jnp.array([False, True])
    >>> kl = token_kls(hidden, jnp.log(jnp.array([[1.0], [3.0]])), hidden, jnp.zeros((2, 1)), mask)
    >>> [float(value) for value in kl]  # ¼ log ½ + ¾ log 3/2
    [0.0, 0.1308]
    """
    tokens = jnp.zeros(jnp.shape(mask), jnp.int32)
    _check("token_kls", hidden, unembedding, tokens, mask)
    _check("token_kls", ref_hidden, ref_unembedding, tokens, mask, "ref_")

    def kls(rows, ref_rows, present, unembedding, ref_unembedding, options):
        return token_kl(rows, unembedding, ref_rows, ref_unembedding, present, **options,
                        implementation=implementation)  # fmt: skip

    rows = _flat(hidden), _flat(ref_hidden), _advanced(mask, False).reshape(-1)
    options = {"temperature": temperature, "softcap": softcap, "bias": bias}
    found = _divided(kls, mesh, 3, (P(), P(), P()))(*rows, unembedding, ref_unembedding, options)
    return delayed(found.reshape(mask.shape))


def logps_at(
    hidden: Float[Array, "*B T D"],
    unembedding: Float[Array, "V D"],
    ids: Int[Array, "*B T K"],
    tokens: Int[Array, "*B T"],
    logp: Float[Array, "*B T"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    softcap: SoftCap = None,
    bias: Bias = None,
) -> Float[Array, "*B T K"]:
    """The log-probabilities of a few tokens v per position, from the log-probability of the sampled token y.

        log π_t(v) = log π_t(y) + x_v − x_y,    x the scaled logits of `pallas_kernels.token_stats`

    A banned v gets −∞ without a gradient; all v do if y is banned, because log π(v) is then unknown. Unlike the logits
    of `distillation.logits_at`, the result is normalized over the whole vocabulary.

    Args:
      hidden: Hidden states, [..., T, D].
      unembedding: W, [V, D].
      ids: The tokens v, [..., T, K].
      tokens: The sampled tokens y, [..., T].
      logp: log π(y), [..., T], in nats, from `token_logps` with the same temperature, softcap and bias.
      temperature: τ, without unit; τ > 0.
      softcap: Soft cap of the logits, or None.
      bias: Bias, [V], or None.

    Returns:
      log π(v), [..., T, K], in nats; meaningless at masked tokens.

    Raises:
      ValueError: If shapes do not fit each other.
      TypeError: If tokens are not signed integers.

    >>> hidden, unembedding = jnp.ones((2, 1)), jnp.log(jnp.array([[1.0], [3.0]]))
    >>> tokens, logp = jnp.array([0, 1]), jnp.array([0.0, jnp.log(0.75)])
    >>> few = logps_at(hidden, unembedding, jnp.array([[0, 1], [0, 1]]), tokens, logp)
    >>> jnp.exp(few[1]).tolist()
    [0.25, 0.75]
    """
    _check("logps_at", hidden, unembedding, tokens, jnp.ones(jnp.shape(tokens), bool))
    require_shape(jnp.shape(tokens), "tokens", logp=logp, ids=ids[..., 0])
    rows = preceding(hidden)
    wanted = jnp.concatenate([tokens[..., None], ids], axis=-1)
    z = logits_at(rows, unembedding, wanted.reshape(-1, wanted.shape[-1])).reshape(wanted.shape)
    if bias is not None:
        require_shape(jnp.shape(unembedding)[:1], "unembedding's first axis", bias=bias)
        z = z + bias[wanted].astype(z.dtype)
    x, banned = _scaled(z, jnp.asarray(temperature, z.dtype), softcap)
    few = logp[..., None].astype(x.dtype) + (x[..., 1:] - x[..., :1])
    return jnp.where(banned[..., 1:], lax.stop_gradient(few) - jnp.inf, few)  # NaN − ∞ is NaN


def _scaled(z, tau, softcap: SoftCap):
    """(x, True if banned) of logits z; x is 0 at banned tokens, so that ∞ − ∞ does not arise."""
    banned = z / tau <= BANNED
    z = jnp.where(banned, 0, z)
    if softcap is not None:
        cap = jnp.asarray(softcap, z.dtype)
        z = cap * jnp.tanh(z / cap)
    return z / tau, banned


def _flat(hidden):
    return hidden.reshape(-1, hidden.shape[-1])


def _advanced(x, absent):
    """x [..., T] shifted one position earlier, because hidden[t] predicts token t + 1; the last entry is `absent`."""
    return jnp.concatenate([x[..., 1:], jnp.full_like(x[..., :1], absent)], axis=-1)


def _axes(mesh: Mesh | None, split: P | None) -> tuple[str | None, str | None]:
    """The mesh axes that split the vocabulary and the width of the unembedding; None if unsplit or of size 1."""
    if mesh is None or split is None:
        return None, None
    names = (*split, None, None)[: max(2, len(split))]
    if len(names) > 2 or not all(name is None or name in mesh.axis_names for name in names):
        raise ValueError(f"token_logps: split = {split}: expected P(axis of the vocabulary, axis of the width), each "
                         f"None or one of the mesh axes {mesh.axis_names}")  # fmt: skip
    vocabulary, width = (name if name is not None and mesh.shape[name] > 1 else None for name in names)
    return vocabulary, width


def _divided(function, mesh: Mesh | None, arrays: int, others: tuple, vocabulary: str | None = None):
    """`function` with the rows of its first `arrays` arguments split over all axes of the mesh but `vocabulary`.

    `others` are the specs of the remaining arguments. Gradients of replicated arguments are summed over devices.
    """
    if mesh is None:
        return function
    axes = tuple(axis for axis in mesh.axis_names if axis != vocabulary)
    parts = math.prod(mesh.shape[axis] for axis in axes)

    def run(*arguments):
        count = arguments[0].shape[0]
        split = jax.shard_map(function, mesh=mesh, in_specs=(P(axes),) * arrays + others, out_specs=P(axes))
        padded = (_padded(x, -count % parts) for x in arguments[:arrays])
        return jax.tree.map(lambda stat: stat[:count], split(*padded, *arguments[arrays:]))

    return run


def _padded(x, extra: int):
    """x with `extra` masked rows, so that every device gets the same number of rows."""
    absent = False if x.dtype == jnp.bool_ else -1 if jnp.issubdtype(x.dtype, jnp.integer) else 0
    return jnp.pad(x, ((0, extra), *[(0, 0)] * (x.ndim - 1)), constant_values=absent)


def delayed(x: Float[Array, "*B T"]) -> Float[Array, "*B T"]:
    """An array `x` [..., T] shifted one position later: entry t is x[t − 1], and entry 0 is 0.

    `x` holds one number per hidden state, such as the values of a critic. `preceding` shifts hidden states.

    >>> delayed(jnp.array([1.0, 2.0, 3.0])).tolist()
    [0.0, 1.0, 2.0]
    """
    return jnp.concatenate([jnp.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)


def preceding(hidden: Float[Array, "*B T D"]) -> Float[Array, "N D"]:
    """The hidden states that predict each token, as rows [N, D]: hidden[t − 1] for token t, and 0 for t = 0.

    `hidden` is [..., T, D], and N is its number of tokens. `delayed` shifts arrays without the axis D.

    >>> preceding(jnp.array([[1.0], [2.0], [3.0]])).tolist()
    [[0.0], [1.0], [2.0]]
    """
    return _flat(jnp.concatenate([jnp.zeros_like(hidden[..., :1, :]), hidden[..., :-1, :]], axis=-2))


def _check(caller: str, hidden, unembedding, tokens, mask, of: str = "") -> None:
    shape = jnp.shape(tokens)
    if not shape or jnp.shape(hidden)[:-1] != shape:
        raise ValueError(
            f"{caller}: {of}hidden has shape {jnp.shape(hidden)}: expected [*B, T, D] "
            f"with [*B, T] = {shape}, one per token"
        )
    if jnp.shape(mask) != shape:
        raise ValueError(f"{caller}: mask has shape {jnp.shape(mask)}: expected {shape}, as tokens")
    if jnp.result_type(mask) != jnp.bool_:
        raise TypeError(f"{caller}: mask has dtype {jnp.result_type(mask)}: expected bool")
    if not jnp.issubdtype(jnp.result_type(tokens), jnp.signedinteger):
        raise TypeError(f"{caller}: tokens has dtype {jnp.result_type(tokens)}: expected a signed integer")
    if jnp.ndim(unembedding) != 2 or jnp.shape(unembedding)[1] != jnp.shape(hidden)[-1]:
        raise ValueError(
            f"{caller}: {of}unembedding has shape {jnp.shape(unembedding)}: expected [V, D] "
            f"with D = {jnp.shape(hidden)[-1]}, as in {of}hidden"
        )
