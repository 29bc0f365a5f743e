"""The shape of a transformer."""

import dataclasses
import math
from typing import Literal, get_args

Precision = Literal["float32", "bfloat16", "float64"]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and variants of the decoder-only transformer; the defaults are a small one (0.6 M parameters) for CPUs.

    Raises ValueError, naming the field, its value and what would be right.

    >>> TransformerConfig(heads=6, kv_heads=4)
    Traceback (most recent call last):
        ...
    ValueError: kv_heads = 4: expected a divisor of heads = 6
    """

    vocab_size: int = 0
    """Tokens in the vocabulary; 0 leaves it to the trainer, which takes the tokenizer's."""
    width: int = 128
    """Features of the residual stream (D)."""
    layers: int = 3
    """Blocks of attention and MLP."""
    heads: int = 4
    """Query heads."""
    kv_heads: int = 4
    """Key and value heads, each shared by heads / kv_heads query heads."""
    head_dim: int = 32
    """Features of a head; even, since rotary positions turn pairs."""
    mlp: int = 344
    """Features inside the gated MLP (SwiGLU: three matrices, so 8/3 of the width costs as much as 4 in a plain one)."""
    rope_base: float = 100.0
    """Base of the rotary frequencies: longer contexts want a larger one (10,000 for thousands of tokens)."""
    tied: bool = False
    """Unembed with the embedding table."""
    qk_norm: bool = False
    """Normalise queries and keys by RMSNorm over the features of each head."""
    value_head: bool = False
    """A linear map from hidden states to values; the trainer sets it where the algorithm's advantage needs a critic."""
    max_length: int = 64
    """Longest row, in tokens."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    dtype: Precision = "float32"
    """Dtype of the computation; the parameters are float32 masters."""
    remat: bool = False
    """Recompute each block in the backward pass: less memory, a third more time."""

    def __post_init__(self):
        _check(self.vocab_size >= 0, "vocab_size", self.vocab_size, "0 or more tokens")
        for name in ("width", "layers", "heads", "kv_heads", "head_dim", "mlp", "max_length"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _check(self.heads % self.kv_heads == 0, "kv_heads", self.kv_heads, f"a divisor of heads = {self.heads}")
        _check(self.head_dim % 2 == 0, "head_dim", self.head_dim, "an even number (rotary positions turn pairs)")
        for name in ("rope_base", "norm_eps"):
            _check(0 < getattr(self, name) < math.inf, name, getattr(self, name), "a positive number")
        _check(self.dtype in get_args(Precision), "dtype", self.dtype, f"one of {', '.join(get_args(Precision))}")

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding tables: the vocabulary, up to a multiple of 128, so that any usual mesh divides it.

        It does not depend on the mesh, so that a checkpoint fits every mesh.
        """
        return -(-self.vocab_size // 128) * 128


def _check(holds: bool, argument: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{argument} = {value!r}: expected {wanted}")
