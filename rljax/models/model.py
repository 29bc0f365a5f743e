"""The transformer as pure functions of its parameters: what training, sampling and checkpoints see."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Int

from rljax.models.attention import accumulator, causal_mask, positions_of
from rljax.models.config import TransformerConfig
from rljax.models.sharding import RULES, keep_split, param_shardings, split_rows
from rljax.models.transformer import Transformer


class Cache(NamedTuple):
    """What decoding remembers of a row: keys and values of each layer, and where the next token goes."""

    kv: tuple[tuple[Float[Array, "B K S C"], Float[Array, "B K S C"]], ...]
    valid: Bool[Array, "B S"]
    """Slots that the next token may see."""
    position: Int[Array, " B"]
    """Position of the next token in its segment."""
    index: Int[Array, ""]
    """Slot of the next token, the same in every row (prompts are padded on the left)."""


@functools.lru_cache(maxsize=32)
def _definition(config: TransformerConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The module's graph and the shapes of its parameters."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0))))


@dataclasses.dataclass(frozen=True)
class Model:
    """The functions of a transformer, without its parameters: hashable, so it may be a static argument of `jax.jit`.

    `params` is a nested dict of float32 arrays. Raises ValueError or TypeError, at trace time, where shapes or dtypes
    do not fit.
    """

    config: TransformerConfig

    def __post_init__(self):
        if self.config.vocab_size < 1:
            raise ValueError(
                f"vocab_size = {self.config.vocab_size}: expected the tokenizer's number of tokens, 1 or more"
            )

    def initialise(self, key: Array) -> dict:
        """Fresh parameters, on one device; `create` makes them on a mesh."""
        return nnx.to_pure_dict(nnx.state(Transformer(self.config, nnx.Rngs(params=key))))

    def param_shardings(self, mesh: Mesh) -> dict:
        """The sharding of each parameter over the mesh (data, fsdp, tensor); ValueError where it does not divide."""
        return param_shardings(_definition(self.config)[1], mesh)

    def abstract_params(self, mesh: Mesh) -> dict:
        """The parameters as `jax.ShapeDtypeStruct`s with shardings: what a checkpoint is restored to."""
        shapes, shardings = nnx.to_pure_dict(_definition(self.config)[1]), self.param_shardings(mesh)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)

    def hidden(self, params: dict, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Hidden states after the final norm, in the compute dtype: `hidden[t] · unembedding` are token t + 1's logits.

        A token sees the tokens before it of its own segment (equal ids, not 0); positions restart at 0 in each.
        """
        self._check(params, tokens, segment_ids)
        return self._apply(params, tokens, segment_ids)[0]

    def unembedding(self, params: dict) -> Float[Array, "V D"]:
        """The table that reads hidden states, in the compute dtype; without the rows that pad the vocabulary."""
        return self.padded_unembedding(params)[: self.config.vocab_size]

    def padded_unembedding(self, params: dict) -> Float[Array, "padded_vocab D"]:
        """The table as it is kept, which lies as `unembedding_split` says: no copy of it is made to cut the padding."""
        table = keep_split(params, _definition(self.config)[1])["embedding" if self.config.tied else "unembedding"]
        return table.astype(self.config.dtype)

    @property
    def unembedding_split(self) -> P:
        """The mesh axes over which `padded_unembedding` [V, D] is split."""
        return P(RULES["vocab"], RULES["embed"])

    def values(self, params: dict, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
        """V of the state after each token, h·v + b in at least float32; the config must have a `value_head`."""
        kept = keep_split(params, _definition(self.config)[1])
        h = hidden.astype(accumulator(hidden.dtype))
        v, b = (kept[name].astype(h.dtype) for name in ("value", "value_bias"))
        return jnp.matmul(h, v, precision=lax.Precision.HIGHEST) + b

    def prefill(
        self, params: dict, tokens: Int[Array, "B L"], segment_ids: Int[Array, "B L"], cache_length: int
    ) -> tuple[Float[Array, "B D"], Cache]:
        """The hidden state of the last token of left-padded prompts, and a cache of `cache_length` slots holding them.

        The last column belongs to the prompt; where it is packed, decoding goes on in its last segment.
        """
        self._check(params, tokens, segment_ids)
        length = tokens.shape[1]
        if not length <= cache_length <= self.config.max_length:
            raise ValueError(f"cache_length = {cache_length}: expected the {length} tokens of the prompt at least, and "
                             f"max_length = {self.config.max_length} at most")  # fmt: skip
        hidden, kv = self._apply(params, tokens, segment_ids)
        none, free = (0, 0), (0, cache_length - length)
        present = (segment_ids == segment_ids[:, -1:]) & (segment_ids != 0)
        cache = Cache(
            kv=jax.tree.map(lambda x: split_rows(jnp.pad(x, (none, none, free, none))), kv),
            valid=split_rows(jnp.pad(present, (none, free))),
            position=jnp.where(present[:, -1], positions_of(segment_ids)[:, -1] + 1, 0),
            index=jnp.int32(length),
        )
        return hidden[:, -1], cache

    def decode(self, params: dict, token: Int[Array, " B"], cache: Cache) -> tuple[Float[Array, "B D"], Cache]:
        """The hidden state of one more token a row, and the cache with it. The cache must have a free slot."""
        _require_integers("token", token, cache.position.shape)
        slot = lax.broadcasted_iota(jnp.int32, cache.valid.shape, 1) == cache.index
        valid = cache.valid | slot

        def remember(layer, k, v):
            return tuple(
                lax.dynamic_update_slice_in_dim(old, new, cache.index, axis=2)
                for old, new in zip(cache.kv[layer], (k, v), strict=True)
            )

        hidden, kv = self._network(params)(token[:, None], cache.position[:, None], valid[:, None], remember)
        return hidden[:, 0], Cache(kv, valid, cache.position + 1, cache.index + 1)

    def _network(self, params: dict) -> Transformer:
        graph, abstract = _definition(self.config)
        return nnx.merge(graph, keep_split(params, abstract))

    def _apply(self, params: dict, tokens: Array, segment_ids: Array):
        return self._network(params)(
            tokens, positions_of(segment_ids), causal_mask(segment_ids), lambda layer, k, v: (k, v)
        )

    def _check(self, params: dict, tokens: Array, segment_ids: Array) -> None:
        if tokens.ndim != 2:
            raise ValueError(f"tokens has shape {tokens.shape}: expected [B, T]")
        _require_integers("tokens", tokens, tokens.shape)
        _require_integers("segment_ids", segment_ids, tokens.shape)
        if tokens.shape[1] > self.config.max_length:
            raise ValueError(f"tokens has {tokens.shape[1]} columns: expected at most max_length = "
                             f"{self.config.max_length} (shorten the sequence, or raise max_length)")  # fmt: skip
        _require_params(params, nnx.to_pure_dict(_definition(self.config)[1]))


def _require_params(params: dict, expected: dict) -> None:
    given, wanted = (dict(jax.tree.leaves_with_path(tree)) for tree in (params, expected))
    for path in [*wanted, *given]:
        shapes = [jnp.shape(leaves[path]) if path in leaves else "absent" for leaves in (given, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"params{jax.tree_util.keystr(path)} has shape {shapes[0]}: expected {shapes[1]}, as the "
                             "model's config says")  # fmt: skip


def _require_integers(name: str, x: Array, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} has shape {x.shape}: expected {shape}")
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {x.dtype}: expected int32")


def without_value_head(params: dict) -> dict:
    """The parameters of the policy alone."""
    return {name: x for name, x in params.items() if name not in ("value", "value_bias")}


def create(config: TransformerConfig, mesh: Mesh, key: Array) -> tuple[Model, dict]:
    """A model and fresh parameters, made in place: from one key the same values on every mesh, to rounding."""
    model = Model(config)
    return model, jax.jit(model.initialise, out_shardings=model.param_shardings(mesh))(key)
