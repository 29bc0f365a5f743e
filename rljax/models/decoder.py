"""A decoder-only language model as pure functions of its parameters, around a network of Flax nnx."""

import abc
import dataclasses
import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from rljax._checks import check
from rljax.models.attention import accumulator, causal_mask, positions_of
from rljax.models.protocol import Head, Model, ModelConfig
from rljax.models.sharding import RULES, ShardingRules, keep_split, param_shardings, split_rows

Precision = Literal["float32", "bfloat16", "float64"]


@dataclasses.dataclass(frozen=True)
class DecoderConfig(ModelConfig):
    """Settings that every decoder has; a family adds its own, and `network`."""

    vocab_size: int = 0
    """Tokens in the vocabulary; 0 leaves it to the trainer, which takes the tokenizer's."""
    max_length: int = 64
    """Longest row, in tokens."""
    tied: bool = False
    """Unembed with the embedding table."""
    value_head: bool = False
    """A linear map from hidden states to values; the trainer sets it if the algorithm's advantage needs a critic."""
    dtype: Precision = "float32"
    """Dtype of the computation; the parameters are float32 masters."""

    def __post_init__(self):
        check(self.vocab_size >= 0, "vocab_size", self.vocab_size, "0 or more tokens")
        check(self.max_length >= 1, "max_length", self.max_length, "1 or more")
        check(self.dtype in get_args(Precision), "dtype", self.dtype, f"one of {', '.join(get_args(Precision))}")

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding tables: the vocabulary, up to a multiple of 128, so that any usual mesh divides it.

        It does not depend on the mesh, so that a checkpoint fits every mesh.
        """
        return -(-self.vocab_size // 128) * 128

    @abc.abstractmethod
    def network(self, rngs: nnx.Rngs, rules: ShardingRules) -> nnx.Module:
        """The module: `(tokens, positions, mask, remember) -> (hidden, memory)`, and its tables as attributes.

        `embedding` and, unless tied, `unembedding` are `[padded_vocab, D]`; with a value head `value` is `[D]` and
        `value_bias` a scalar. All other parameters are the family's own.
        """

    def build(self, *, vocab_size: int, value_head: bool, rules: ShardingRules) -> "Decoder":
        return Decoder(dataclasses.replace(self, vocab_size=vocab_size, value_head=value_head), rules)


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
def _definition(config: DecoderConfig, rules: ShardingRules) -> tuple[nnx.GraphDef, nnx.State]:
    """The network's graph and the shapes of its parameters."""
    return nnx.split(nnx.eval_shape(lambda: config.network(nnx.Rngs(params=0), rules)))


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The functions of a decoder, without its parameters: hashable, so it may be a static argument of `jax.jit`.

    `params` is a nested dict of float32 arrays. Raises ValueError or TypeError, at trace time, if shapes or dtypes
    do not fit.
    """

    config: DecoderConfig
    rules: ShardingRules = RULES

    def __post_init__(self):
        check(self.config.vocab_size >= 1, "vocab_size", self.config.vocab_size,
              "the tokenizer's number of tokens, 1 or more")  # fmt: skip

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_length(self) -> int:
        return self.config.max_length

    def initialize(self, key: Array) -> dict:
        """Fresh parameters, on one device; `rljax.models.initialize` makes them on a mesh."""
        return nnx.to_pure_dict(nnx.state(self.config.network(nnx.Rngs(params=key), self.rules)))

    def abstract_params(self, mesh: Mesh) -> dict:
        """The parameters as `jax.ShapeDtypeStruct`s with shardings: what a checkpoint is restored to."""
        shapes, shardings = nnx.to_pure_dict(self._abstract), param_shardings(self._abstract, mesh, self.rules)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)

    def hidden(self, params: dict, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Hidden states after the final norm, in the compute dtype: `hidden[t] · unembedding` are token t + 1's logits.

        A token sees the tokens before it of its own segment (equal ids, not 0); positions restart at 0 in each.
        """
        self._check(params, tokens, segment_ids)
        return self._apply(params, tokens, segment_ids)[0]

    def unembedding(self, params: dict) -> Float[Array, "V D"]:
        """The table that reads hidden states, in the compute dtype; without the rows that pad the vocabulary."""
        return self.head(params).table[: self.vocab_size]

    def head(self, params: dict) -> Head:
        """The table as it is stored."""
        table = self._kept(params)["embedding" if self.config.tied else "unembedding"]
        return Head(table.astype(self.config.dtype), self.vocab_size, self.rules.spec("vocab", "embed"))

    def values(self, params: dict, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
        """V of the state after each token, h·v + b in at least float32; the config must have a `value_head`."""
        kept = self._kept(params)
        h = hidden.astype(accumulator(hidden.dtype))
        v, b = (kept[name].astype(h.dtype) for name in ("value", "value_bias"))
        return jnp.matmul(h, v, precision=lax.Precision.HIGHEST) + b

    def prefill(
        self, params: dict, tokens: Int[Array, "B L"], segment_ids: Int[Array, "B L"], cache_length: int
    ) -> tuple[Float[Array, "B D"], Cache]:
        """The hidden state of the last token of left-padded prompts, and a cache of `cache_length` slots holding them.

        The last column belongs to the prompt; if that is packed, decoding goes on in its last segment.
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
            kv=jax.tree.map(lambda x: split_rows(jnp.pad(x, (none, none, free, none)), self.rules), kv),
            valid=split_rows(jnp.pad(present, (none, free)), self.rules),
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

    @property
    def _abstract(self) -> nnx.State:
        return _definition(self.config, self.rules)[1]

    def _kept(self, params: dict) -> dict:
        return keep_split(params, self._abstract, self.rules)

    def _network(self, params: dict):
        return nnx.merge(_definition(self.config, self.rules)[0], self._kept(params))

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
        _require_params(params, nnx.to_pure_dict(self._abstract))


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


def initialize(model: Model, mesh: Mesh, key: Array):
    """Fresh parameters, made in place on the mesh: from one key the same values on every mesh, to rounding."""
    shardings = jax.tree.map(lambda x: x.sharding, model.abstract_params(mesh))
    with jax.disable_jit(False):  # without jit there are no shardings
        return jax.jit(model.initialize, out_shardings=shardings)(key)


def create(config: DecoderConfig, mesh: Mesh, key: Array, rules: ShardingRules = RULES):
    """(model, fresh parameters) of a config that has its vocabulary."""
    model = Decoder(config, rules)
    return model, initialize(model, mesh, key)
