"""A decoder-only language model as pure functions of its parameters, built on a Flax nnx network."""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from rljax._checks import check
from rljax.models.attention import accumulator, causal_mask, positions_of
from rljax.models.protocol import Head, ModelConfig, initialize
from rljax.models.sharding import RULES, ShardingRules, keep_split, param_shardings, split_rows

Precision = Literal["float32", "bfloat16", "float64"]


@dataclasses.dataclass(frozen=True)
class DecoderConfig(ModelConfig):
    """Settings shared by all decoders; a subclass such as `TransformerConfig` adds its own and implements `network`.

    Raises ValueError if a field is out of range.
    """

    vocab_size: int = 0
    """Number of tokens in the vocabulary; if 0, the trainer sets it to the tokenizer's vocabulary size."""
    max_length: int = 64
    """Maximum row length, in tokens."""
    tied: bool = False
    """Use the embedding table as the unembedding table."""
    value_head: bool = False
    """Add a linear map from hidden states to values; the trainer sets it if the algorithm needs a critic."""
    dtype: Precision = "float32"
    """Dtype of the computation."""
    param_dtype: Precision = "float32"
    """Dtype of the parameters."""
    softcap: float | None = None
    """Soft cap c of the logits z, which become c · tanh(z / c); None leaves them as they are."""

    def __post_init__(self):
        check(self.vocab_size >= 0, "vocab_size", self.vocab_size, "0 or more tokens")
        check(self.max_length >= 1, "max_length", self.max_length, "1 or more")
        for name in ("dtype", "param_dtype"):
            value = getattr(self, name)
            check(value in get_args(Precision), name, value, f"one of {', '.join(get_args(Precision))}")
        check(self.softcap is None or 0 < self.softcap < math.inf, "softcap", self.softcap, "None or a positive number")

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding tables: `vocab_size` rounded up to a multiple of 128, so that mesh axes divide it."""
        return -(-self.vocab_size // 128) * 128

    @abc.abstractmethod
    def network(self, rngs: nnx.Rngs, rules: ShardingRules) -> nnx.Module:
        """A module called as `(tokens, positions, mask, remember) -> (hidden, memory)`, initialized with `rngs`.

        It has the attributes `embedding` and, unless `tied`, `unembedding`, both `[padded_vocab, D]`; with a value head
        also `value`, `[D]`, and `value_bias`, a scalar.
        """

    def build(self, *, vocab_size: int, value_head: bool, rules: ShardingRules) -> "Decoder":
        return Decoder(dataclasses.replace(self, vocab_size=vocab_size, value_head=value_head), rules)


class Cache(NamedTuple):
    """Decoding state: keys and values of each layer, and the slot and position of the next token."""

    kv: tuple[tuple[Float[Array, "B K S C"], Float[Array, "B K S C"]], ...]
    """(keys, values) of each layer: K heads, S slots, C features per head."""
    valid: Bool[Array, "B S"]
    """True for the slots that the next token may attend to."""
    position: Int[Array, " B"]
    """Position of the next token in its segment."""
    index: Int[Array, ""]
    """Slot of the next token, the same in all rows because prompts are padded on the left."""


@functools.lru_cache(maxsize=32)
def _definition(config: DecoderConfig, rules: ShardingRules) -> tuple[nnx.GraphDef, nnx.State]:
    """The nnx graph and the abstract parameters of the network."""
    return nnx.split(nnx.eval_shape(lambda: config.network(nnx.Rngs(params=0), rules)))


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The `Model` of a `DecoderConfig`: functions of `params`, a nested dict of arrays in `config.param_dtype`.

    The functions raise ValueError at trace time if shapes do not fit, and TypeError if tokens or segment ids are not
    integers. `create` returns a decoder together with its parameters.
    """

    config: DecoderConfig
    rules: ShardingRules = RULES

    def __post_init__(self):
        check(self.config.vocab_size >= 1, "vocab_size", self.config.vocab_size,
              "1 or more (the tokenizer's vocabulary size)")  # fmt: skip

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_length(self) -> int:
        return self.config.max_length

    def initialize(self, key: Array) -> dict:
        params = nnx.to_pure_dict(nnx.state(self.config.network(nnx.Rngs(params=key), self.rules)))
        return jax.tree.map(lambda x: x.astype(self.config.param_dtype), params)

    def abstract_params(self, mesh: Mesh) -> dict:
        shapes, shardings = nnx.to_pure_dict(self._abstract), param_shardings(self._abstract, mesh, self.rules)
        dtype = jnp.dtype(self.config.param_dtype)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shapes, shardings)

    def hidden(self, params: dict, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Hidden states after the final norm, in the compute dtype; positions restart at 0 in each segment."""
        self._check(params, tokens, segment_ids)
        return _whole_rows(self._network(params), tokens, segment_ids)[0]

    def group_hidden(
        self, params: dict, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"], *, prompt_length: int,
        completions: int,
    ) -> Float[Array, "B N D"]:  # fmt: skip
        """As in `PromptSharing.group_hidden`: each prompt's keys and values are computed once and then repeated."""
        self._check(params, tokens, segment_ids)
        (B, T), L, G = tokens.shape, prompt_length, completions
        check(G >= 1 and B % G == 0, "completions", G, f"a divisor of the {B} rows of tokens")
        check(1 <= L < T, "prompt_length", L, f"1 to {T - 1} of the {T} columns of tokens")
        first = (x.reshape(B // G, G, T)[:, 0, :L] for x in (tokens, segment_ids))
        network = self._network(params)
        prompt, kv = _whole_rows(network, *first)

        def remember(layer, k, v):
            return tuple(
                jnp.concatenate([jnp.repeat(shared, G, axis=0), own], axis=2)
                for shared, own in zip(kv[layer], (k, v), strict=True)
            )

        positions, mask = positions_of(segment_ids)[:, L:], causal_mask(segment_ids)[:, L:]
        completion, _ = network(tokens[:, L:], positions, mask, remember)
        return split_rows(jnp.concatenate([jnp.repeat(prompt[:, -1:], G, axis=0), completion], axis=1), self.rules)

    def unembedding(self, params: dict) -> Float[Array, "V D"]:
        return self.head(params).table[: self.vocab_size]

    def head(self, params: dict) -> Head:
        table = self._kept(params)["embedding" if self.config.tied else "unembedding"]
        split = self.rules.spec("vocab", "embed")
        return Head(table.astype(self.config.dtype), self.vocab_size, split, self.config.softcap)

    def values(self, params: dict, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
        """Values h·v + b of the state after each token, in at least float32; requires `config.value_head`."""
        kept = self._kept(params)
        h = hidden.astype(accumulator(hidden.dtype))
        v, b = (kept[name].astype(h.dtype) for name in ("value", "value_bias"))
        return jnp.matmul(h, v, precision=lax.Precision.HIGHEST) + b

    def prefill(
        self, params: dict, tokens: Int[Array, "B L"], segment_ids: Int[Array, "B L"], cache_length: int
    ) -> tuple[Float[Array, "B D"], Cache]:
        """As in `Model.prefill`. The last column must not be padding; decoding continues the last segment of a row."""
        self._check(params, tokens, segment_ids)
        length = tokens.shape[1]
        if not length <= cache_length <= self.config.max_length:
            raise ValueError(f"cache_length = {cache_length}: expected at least the {length} tokens of the prompt and "
                             f"at most max_length = {self.config.max_length}")  # fmt: skip
        hidden, kv = _whole_rows(self._network(params), tokens, segment_ids)
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
        """As in `Model.decode`; `cache` must have a free slot, which is not checked."""
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

    def _check(self, params: dict, tokens: Array, segment_ids: Array) -> None:
        if tokens.ndim != 2:
            raise ValueError(f"tokens has shape {tokens.shape}: expected [B, T]")
        _require_integers("tokens", tokens, tokens.shape)
        _require_integers("segment_ids", segment_ids, tokens.shape)
        if tokens.shape[1] > self.config.max_length:
            raise ValueError(f"tokens has {tokens.shape[1]} columns: expected at most max_length = "
                             f"{self.config.max_length} (shorten the sequence, or raise max_length)")  # fmt: skip
        _require_params(params, nnx.to_pure_dict(self._abstract))


def _whole_rows(network: Callable, tokens: Array, segment_ids: Array) -> tuple[Array, Any]:
    """(hidden, kv) of whole rows."""
    return network(tokens, positions_of(segment_ids), causal_mask(segment_ids), lambda layer, k, v: (k, v))


def _require_params(params: dict, expected: dict) -> None:
    given, wanted = (dict(jax.tree.leaves_with_path(tree)) for tree in (params, expected))
    for path in [*wanted, *given]:
        shapes = [jnp.shape(leaves[path]) if path in leaves else "absent" for leaves in (given, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"params{jax.tree_util.keystr(path)} has shape {shapes[0]}: expected {shapes[1]}, the "
                             "shape in the model's config")  # fmt: skip


def _require_integers(name: str, x: Array, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} has shape {x.shape}: expected {shape}")
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {x.dtype}: expected an integer dtype")


def create(config: DecoderConfig, mesh: Mesh, key: Array, rules: ShardingRules = RULES):
    """Returns the `Decoder` of `config` and its random parameters from `key` on `mesh`, sharded by `rules`.

    Raises ValueError if `config.vocab_size` is 0. `initialize` creates parameters for an existing model.
    """
    model = Decoder(config, rules)
    return model, initialize(model, mesh, key)
