"""The model interface used by training, scoring and sampling."""

import abc
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from rljax.models.sharding import ShardingRules
from rljax.text import TextTokenizer

Params = dict[str, Any]
"""Nested dict of arrays. The entries `value` and `value_bias` are the value head; all other entries are the policy."""
_VALUE_HEAD = ("value", "value_bias")


class Head(NamedTuple):
    """The unembedding table as stored, with its padding and sharding, so that no copy is made."""

    table: Float[Array, "padded_vocab D"]
    """Table in the compute dtype; rows with index `vocab_size` or more are padding."""
    vocab_size: int
    """Number of tokens."""
    split: P
    """Mesh axes over which the table is sharded."""
    softcap: float | None = None
    """Soft cap c of the logits z, which are c · tanh(z / c); None if they are not capped."""


class Model(Protocol):
    """Interface of a language model, as pure functions of its parameters; `Decoder` implements it.

    A model holds no arrays and is hashable, so it can be a static argument of `jax.jit`. Shapes: B rows, T tokens per
    row, V tokens in the vocabulary, D features.
    """

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary (V)."""
        ...

    @property
    def max_length(self) -> int:
        """Maximum row length, in tokens."""
        ...

    @property
    def rules(self) -> ShardingRules:
        """Sharding of parameters and activations over a mesh."""
        ...

    def initialize(self, key: Array) -> Params:
        """Random parameters from `key`, on one device; `rljax.models.initialize` creates them on a mesh."""
        ...

    def abstract_params(self, mesh: Mesh) -> Params:
        """Shapes, dtypes and shardings of the parameters, as a pytree of `jax.ShapeDtypeStruct`.

        Raises ValueError if an axis of `mesh` does not divide the parameter axis that it shards.
        """
        ...

    def hidden(
        self, params: Params, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Hidden states in the compute dtype; `hidden[t] · unembeddingᵀ` are the logits of token t + 1, not yet capped.

        Each token of `tokens` attends to itself and the earlier tokens with its id in `segment_ids`; id 0 is padding.
        """
        ...

    def head(self, params: Params) -> Head:
        """The unembedding table as stored, with padding rows."""
        ...

    def unembedding(self, params: Params) -> Float[Array, "V D"]:
        """The table [V, D] that maps hidden states to logits, without padding rows."""
        ...

    def values(self, params: Params, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
        """Value estimate of the state after each token of `hidden`; requires a model built with a value head."""
        ...

    def prefill(
        self, params: Params, tokens: Int[Array, "B L"], segment_ids: Int[Array, "B L"], cache_length: int
    ) -> tuple[Float[Array, "B D"], Any]:
        """Hidden state of the last token of each left-padded prompt, and a cache with `cache_length` slots.

        `tokens` and `segment_ids` are as in `hidden`. The first L slots of the cache hold the prompts. Except in
        scalars, the first axis of every array in the cache is the row, so that `generate` can repeat rows.
        """
        ...

    def decode(self, params: Params, token: Int[Array, " B"], cache: Any) -> tuple[Float[Array, "B D"], Any]:
        """Hidden state of one more `token` per row, and the `cache` extended by that token."""
        ...


@runtime_checkable
class PromptSharing(Protocol):
    """An optional ability of a `Model`: the completions of a group share the computation of their prompt."""

    def group_hidden(
        self, params: Params, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"], *, prompt_length: int,
        completions: int,
    ) -> Float[Array, "B N D"]:  # fmt: skip
        """`hidden` of the last N = T − `prompt_length` + 1 columns, from the last column of the prompt on.

        Each `completions` consecutive rows must have the same tokens and ids in their first `prompt_length` columns,
        which is not checked.
        """
        ...


class ModelConfig(abc.ABC):
    """Base class of a recipe's `model`: a frozen dataclass of settings that builds a `Model`."""

    max_length: int
    """Maximum row length, in tokens."""

    @abc.abstractmethod
    def build(self, *, vocab_size: int, value_head: bool, rules: ShardingRules) -> Model:
        """The model for `vocab_size` tokens, sharded by `rules`; `value_head` adds the critic's value head."""

    def tokenizer(self) -> TextTokenizer | None:
        """The tokenizer that belongs to the model's parameters; None if the model accepts the task's tokenizer."""
        return None

    def parameters(self, model: Model, mesh: Mesh, key: Array) -> Params:
        """The initial parameters of `model`, a result of `build`, with their shardings on `mesh`; by default random."""
        return initialize(model, mesh, key)


def initialize(model: Model, mesh: Mesh, key: Array) -> Params:
    """Random parameters of `model`, created with their shardings on `mesh`.

    The values for a `key` are equal on every mesh, up to rounding (`tests/models/sharding_test.py`).
    """
    shardings = jax.tree.map(lambda x: x.sharding, model.abstract_params(mesh))
    with jax.disable_jit(False):  # without jit there are no shardings
        return jax.jit(model.initialize, out_shardings=shardings)(key)


def initialize_value_head(model: Model, mesh: Mesh, key: Array) -> Params:
    """The entries `value` and `value_bias` of `initialize`; empty if the model has no value head."""

    def head(params: Params) -> Params:
        return {name: x for name, x in params.items() if name in _VALUE_HEAD}

    shardings = jax.tree.map(lambda x: x.sharding, head(model.abstract_params(mesh)))
    if not shardings:
        return {}
    with jax.disable_jit(False):  # without jit all parameters would be created
        return jax.jit(lambda key: head(model.initialize(key)), out_shardings=shardings)(key)


def without_value_head(params: Params) -> Params:
    """The entries of `params` that belong to the policy, i.e. all except `value` and `value_bias`."""
    return {name: x for name, x in params.items() if name not in _VALUE_HEAD}
