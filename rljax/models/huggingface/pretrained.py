"""A recipe's `model` that is read from a Hugging Face folder."""

import dataclasses
from functools import cached_property
from pathlib import Path

from jax import Array
from jax.sharding import Mesh

from rljax._checks import check
from rljax._folders import require_folder
from rljax.models.decoder import Decoder, Precision
from rljax.models.huggingface.config import read_config
from rljax.models.huggingface.load import read_parameters
from rljax.models.protocol import Model, ModelConfig, Params
from rljax.models.sharding import ShardingRules
from rljax.text import TextTokenizer, fits


@dataclasses.dataclass(frozen=True)
class PretrainedModel(ModelConfig):
    """The model, parameters and tokenizer of a Hugging Face folder; `load` lists the supported models.

    The folder is read when the model is built, so that `--model.folder PATH` can replace it.
    """

    folder: Path
    """Folder with config.json, model.safetensors (or shards with an index) and tokenizer.json."""
    max_length: int = 2048
    """Maximum row length, in tokens; at most that of the checkpoint."""
    dtype: Precision = "float32"
    """Dtype of the computation."""
    param_dtype: Precision = "float32"
    """Dtype of the parameters."""
    remat: bool = False
    """Recompute each block in the backward pass, which trades computation for memory."""
    ignore: tuple[str, ...] = ()
    """Keys of config.json that are unknown to rljax and do not change the model."""

    def __post_init__(self):
        object.__setattr__(self, "folder", Path(self.folder))
        check(self.max_length >= 1, "max_length", self.max_length, "1 or more")

    def build(self, *, vocab_size: int, value_head: bool, rules: ShardingRules) -> Decoder:
        """The model of the checkpoint, with its own vocabulary, which `vocab_size`, that of the tokenizer, must fit."""
        config = read_config(require_folder(self.folder), self.ignore)
        check(vocab_size <= config.vocab_size or fits(self.tokenizer(), config.vocab_size), "vocab_size", vocab_size,
              f"at most {config.vocab_size}, the rows of the embedding table in {self.folder}")  # fmt: skip
        check(self.max_length <= config.max_length, "max_length", self.max_length,
              f"at most {config.max_length}, max_position_embeddings in {self.folder / 'config.json'}")  # fmt: skip
        own = {name: getattr(self, name) for name in ("max_length", "dtype", "param_dtype", "remat")}
        return Decoder(dataclasses.replace(config, value_head=value_head, **own), rules)

    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the folder; each call returns the same object."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        folder = require_folder(self.folder)
        from rljax.text import load_tokenizer

        return load_tokenizer(folder)

    def parameters(self, model: Model, mesh: Mesh, key: Array) -> Params:
        """The parameters of the checkpoint, and zeros for a value head; `key` is not used."""
        return read_parameters(require_folder(self.folder), model, mesh)
