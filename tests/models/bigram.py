"""A minimal model for the trainer in plain JAX: the next token depends only on the last token."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rljax.models import Head, ModelConfig, ShardingRules


@dataclasses.dataclass(frozen=True)
class BigramConfig(ModelConfig):
    width: int = 16
    max_length: int = 64

    def build(self, *, vocab_size: int, value_head: bool, rules: ShardingRules) -> "Bigram":
        return Bigram(self.width, self.max_length, vocab_size, value_head, rules)


@dataclasses.dataclass(frozen=True)
class Bigram:
    """A `rljax.models.Model` whose parameters are replicated on every device."""

    width: int
    max_length: int
    vocab_size: int
    value_head: bool
    rules: ShardingRules

    def initialize(self, key):
        shape, keys = (self.vocab_size, self.width), jax.random.split(key)
        params = {name: jax.random.normal(k, shape) for name, k in zip(("embedding", "unembedding"), keys, strict=True)}
        value = {"value": jnp.zeros(self.width), "value_bias": jnp.zeros(())}
        return params | value if self.value_head else params

    def abstract_params(self, mesh):
        shapes = jax.eval_shape(self.initialize, jax.random.key(0))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P())), shapes)

    def hidden(self, params, tokens, segment_ids):
        return params["embedding"][tokens]

    def head(self, params):
        return Head(params["unembedding"], self.vocab_size, P())

    def unembedding(self, params):
        return params["unembedding"]

    def values(self, params, hidden):
        return hidden @ params["value"] + params["value_bias"]

    def prefill(self, params, tokens, segment_ids, cache_length):
        return params["embedding"][tokens[:, -1]], ()

    def decode(self, params, token, cache):
        return params["embedding"][token], cache
