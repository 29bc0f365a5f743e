"""The interface of a model to training, scoring and sampling: functions over a pytree of parameters."""

import abc
from typing import Any, NamedTuple, Protocol

from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from rljax.models.sharding import ShardingRules

Params = dict[str, Any]
"""Arrays by name, nested. A value head is the entries `value` and `value_bias`; all others are the policy's."""


class Head(NamedTuple):
    """The unembedding as it is stored: no copy of it is made to cut its padding or to gather its shards."""

    table: Float[Array, "padded_vocab D"]
    """In the compute dtype; rows from `vocab_size` on are padding."""
    vocab_size: int
    split: P
    """Mesh axes over which the table is split."""


class Model(Protocol):
    """The functions of a model, without its parameters: hashable, so that it may be a static argument of `jax.jit`."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        ...

    @property
    def max_length(self) -> int:
        """Longest row, in tokens."""
        ...

    @property
    def rules(self) -> ShardingRules:
        """How its arrays are split over a mesh."""
        ...

    def initialize(self, key: Array) -> Params:
        """Fresh parameters, on one device; `rljax.models.initialize` makes them on a mesh."""
        ...

    def abstract_params(self, mesh: Mesh) -> Params:
        """The parameters as `jax.ShapeDtypeStruct`s with shardings; ValueError if the mesh does not divide them."""
        ...

    def hidden(
        self, params: Params, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Hidden states in the compute dtype: `hidden[t] · unembeddingᵀ` are the logits of token t + 1.

        A token sees the tokens before it in its own segment (equal ids, not 0).
        """
        ...

    def head(self, params: Params) -> Head:
        """The table that maps hidden states to logits, as it is stored."""
        ...

    def unembedding(self, params: Params) -> Float[Array, "V D"]:
        """The same table without padding."""
        ...

    def values(self, params: Params, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
        """V of the state after each token; the model must have been built with a value head."""
        ...

    def prefill(
        self, params: Params, tokens: Int[Array, "B L"], segment_ids: Int[Array, "B L"], cache_length: int
    ) -> tuple[Float[Array, "B D"], Any]:
        """The hidden state of the last token of left-padded prompts, and a cache for `cache_length` tokens."""
        ...

    def decode(self, params: Params, token: Int[Array, " B"], cache: Any) -> tuple[Float[Array, "B D"], Any]:
        """The hidden state of one more token per row, and the cache with it."""
        ...


class ModelConfig(abc.ABC):
    """A recipe's `model`: a frozen dataclass of settings that builds the model for a vocabulary."""

    max_length: int

    @abc.abstractmethod
    def build(self, *, vocab_size: int, value_head: bool, rules: ShardingRules) -> Model:
        """The model for so many tokens; with a value head if the algorithm needs a critic."""


def without_value_head(params: Params) -> Params:
    """The parameters of the policy alone."""
    return {name: x for name, x in params.items() if name not in ("value", "value_bias")}
