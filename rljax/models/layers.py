"""Layers: parameters with logical axes, linear maps, RMSNorm and the gated MLP."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from rljax.models.attention import accumulator


def weight(rngs: nnx.Rngs, std: float, **axes: int) -> nnx.Param:
    """A float32 parameter drawn from N(0, std²); `axes` maps its logical axes (`ShardingRules`) to their sizes."""
    value = std * jax.random.normal(rngs.params(), tuple(axes.values()), jnp.float32)
    return nnx.Param(value, out_sharding=tuple(axes), eager_sharding=False)


def constant(value: float, **axes: int) -> nnx.Param:
    return nnx.Param(jnp.full(tuple(axes.values()), value, jnp.float32), out_sharding=tuple(axes), eager_sharding=False)


def linear(x: Array, weight: Array) -> Array:
    """x · W over the last axis of x, in the dtype of x, as a single matrix product."""
    return (x.reshape(-1, x.shape[-1]) @ weight.astype(x.dtype)).reshape(*x.shape[:-1], weight.shape[-1])


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of GELU, x · (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2."""
    return jax.nn.gelu(x, approximate=True)


class RMSNorm(nnx.Module):
    """x / √(mean x² + ε) · (shift + scale) over the last axis, in at least float32; shift + scale starts at 1."""

    def __init__(self, size: int, eps: float, shift: float):
        self.scale = constant(1.0 - shift, layer_norm=size)
        self.eps, self.shift = eps, shift

    def __call__(self, x: Array) -> Array:
        wide = x.astype(accumulator(x.dtype))
        unit = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = jnp.expand_dims(self.shift + self.scale[...].astype(wide.dtype), range(x.ndim - 1))
        return (unit * scale).astype(x.dtype)


class GatedMLP(nnx.Module):
    """W_down (activation(W_gate x) · W_up x), with D features outside and M inside; W_down starts at std `std`."""

    def __init__(self, D: int, M: int, activation: Callable, std: float, rngs: nnx.Rngs):
        self.gate = weight(rngs, D**-0.5, embed=D, mlp=M)
        self.up = weight(rngs, D**-0.5, embed=D, mlp=M)
        self.down = weight(rngs, std, mlp=M, embed=D)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        return linear(self.activation(linear(x, self.gate[...])) * linear(x, self.up[...]), self.down[...])
