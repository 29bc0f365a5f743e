"""From hidden states and the unembedding to what the loss needs of every trained token, on one device or a mesh.

In all, hidden[t − 1] has seen the tokens before t, so it says how likely token t was; at t = 0 there is nothing.
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
BANNED = -1e30  # a token is banned if its z/τ is not above this, as in token_stats

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
    """log π(tokens[t] | tokens[<t]) where `mask` is true, with the entropy and the proxy of the same π.

        π_t = softmax((hidden[t−1]·Wᵀ + b)/τ):   logp[t] = log π_t(tokens[t]),   and 0 where ¬mask[t] or t = 0

    Each [*B, T] and as `pallas_kernels.token_stats` defines it.  What `hidden` and `tokens` hold where nothing is
    predicted changes nothing, even NaN.  A token outside the vocabulary counts as masked.

    Rows of the unembedding from `vocab_size` on are padding. `bias` b and `softcap` are as in `token_stats`: a bias of
    −∞ bans a token, even with a soft cap.

    With a `mesh` (axes of AxisType.Auto) `split` says how the unembedding lies there: P("tensor", "fsdp") if its
    vocabulary is split over the axis tensor and its width over fsdp, P() or None if every device holds it whole. The
    bias is split as the vocabulary. The tokens are divided over all axes but the vocabulary's. Values and gradients
    are those of one device.

    Raises ValueError for shapes that do not fit each other, TypeError for dtypes.

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
    """KL(π_t ‖ ρ_t) over the whole vocabulary where `mask` is true, nats, of the policy from the reference; else 0.

    `bias` and `softcap` are those of both models, or a pair: the policy's, then the reference's. As `token_logps` in
    all else; the reference has no gradient. `penalty.exact_kl` sums it.

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
    """log π_t of a few tokens v at each position, from that of the position's own token y.

        log π(v) = log π(y) + x_v − x_y

    with the logits x of `token_stats`. `ids[t]` are the tokens v, `logp` as `token_logps` gives it with the same
    temperature, soft cap and bias; meaningless where that is masked. A banned v has −∞ without a gradient. If y is
    banned every v has −∞, as `logp` does: log π(v) is then unknown.

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
    """(x, whether it is banned) of logits z; the x of a banned token is 0, so that no ∞ − ∞ arises."""
    banned = z / tau <= BANNED
    z = jnp.where(banned, 0, z)
    if softcap is not None:
        cap = jnp.asarray(softcap, z.dtype)
        z = cap * jnp.tanh(z / cap)
    return z / tau, banned


def _flat(hidden):
    """[*B, T, D] as rows [N, D]."""
    return hidden.reshape(-1, hidden.shape[-1])


def _advanced(x, absent):
    """[.., T] one step earlier: hidden[t] sees what stands at t + 1."""
    return jnp.concatenate([x[..., 1:], jnp.full_like(x[..., :1], absent)], axis=-1)


def _axes(mesh: Mesh | None, split: P | None) -> tuple[str | None, str | None]:
    """The axes over which the vocabulary and the width of the unembedding are split; None where there is one part."""
    if mesh is None or split is None:
        return None, None
    names = (*split, None, None)[: max(2, len(split))]
    if len(names) > 2 or not all(name is None or name in mesh.axis_names for name in names):
        raise ValueError(f"token_logps: split is {split}; it should be P(vocabulary's axis, width's axis), each None "
                         f"or one of the mesh's axes {mesh.axis_names}")  # fmt: skip
    vocabulary, width = (name if name is not None and mesh.shape[name] > 1 else None for name in names)
    return vocabulary, width


def _divided(function, mesh: Mesh | None, arrays: int, others: tuple, vocabulary: str | None = None):
    """The function with the rows of its first `arrays` arguments split over the mesh, but not its axis `vocabulary`.

    The `others` lie as they say; what is whole on several devices has its gradients summed.
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
    """Rows that count as masked, so that every device has as many."""
    absent = False if x.dtype == jnp.bool_ else -1 if jnp.issubdtype(x.dtype, jnp.integer) else 0
    return jnp.pad(x, ((0, extra), *[(0, 0)] * (x.ndim - 1)), constant_values=absent)


def delayed(x: Float[Array, "*B T"]) -> Float[Array, "*B T"]:
    """[.., T] one step later: what was computed at t−1 stands at t, and 0 at t = 0.

    >>> delayed(jnp.array([1.0, 2.0, 3.0])).tolist()
    [0.0, 1.0, 2.0]
    """
    return jnp.concatenate([jnp.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)


def preceding(hidden: Float[Array, "*B T D"]) -> Float[Array, "N D"]:
    """Rows of hidden states that each have seen the tokens before their own: `delayed` along T, then flat.

    >>> preceding(jnp.array([[1.0], [2.0], [3.0]])).tolist()
    [[0.0], [1.0], [2.0]]
    """
    return _flat(jnp.concatenate([jnp.zeros_like(hidden[..., :1, :]), hidden[..., :-1, :]], axis=-2))


def _check(caller: str, hidden, unembedding, tokens, mask, of: str = "") -> None:
    shape = jnp.shape(tokens)
    if not shape or jnp.shape(hidden)[:-1] != shape:
        raise ValueError(
            f"{caller}: {of}hidden is of shape {jnp.shape(hidden)}; it should be [*B, T, D] "
            f"with [*B, T] = {shape}, as in tokens"
        )
    if jnp.shape(mask) != shape:
        raise ValueError(f"{caller}: mask is of shape {jnp.shape(mask)}; it should be {shape}, as tokens")
    if jnp.result_type(mask) != jnp.bool_:
        raise TypeError(f"{caller}: mask is of dtype {jnp.result_type(mask)}; it should be bool")
    if not jnp.issubdtype(jnp.result_type(tokens), jnp.signedinteger):
        raise TypeError(f"{caller}: tokens is of dtype {jnp.result_type(tokens)}; it should be a signed integer")
    if jnp.ndim(unembedding) != 2 or jnp.shape(unembedding)[1] != jnp.shape(hidden)[-1]:
        raise ValueError(
            f"{caller}: {of}unembedding is of shape {jnp.shape(unembedding)}; it should be [V, D] "
            f"with D = {jnp.shape(hidden)[-1]}, as in {of}hidden"
        )
