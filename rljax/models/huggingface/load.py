"""Models and parameters from Hugging Face folders."""

import dataclasses
import math
import mmap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from jax.sharding import Mesh

from rljax._checks import check
from rljax._folders import require_folder, shown
from rljax.models.decoder import Decoder, Precision
from rljax.models.huggingface.config import read_config
from rljax.models.huggingface.files import DTYPES, Tensor, read_tensors
from rljax.models.huggingface.weights import EMBEDDING, Prefixes, Weight, is_apart, leaves, prefixes, weights
from rljax.models.protocol import Model, Params
from rljax.models.sharding import MeshConfig, make_mesh


def load(
    folder: str | Path, *, mesh: Mesh | None = None, dtype: Precision = "float32", ignore: Collection[str] = ()
) -> tuple[Decoder, Params]:
    """The model and parameters of a Hugging Face folder, with config.json and safetensors.

    Supported are Llama, Mistral, Qwen2, Qwen3, Qwen3-MoE and Gemma 3 (the text part of multimodal checkpoints), without
    quantization. Each process reads only its shards. Nothing in the folder is executed.

    Args:
        folder: The model folder.
        mesh: The mesh over which the parameters are sharded; by default one device.
        dtype: Dtype of the parameters and of the computation.
        ignore: Keys of config.json that are unknown to rljax and do not change the model.

    Returns:
        The model, whose `max_length` is that of the checkpoint, and its parameters.

    Raises:
        FileNotFoundError: If the folder or one of its files does not exist.
        ValueError: If the model is not supported, or a file is not valid; the message names the key or the tensor.
        ImportError: If the package safetensors is not installed.
    """
    known = dtype in get_args(Precision) and jax.dtypes.canonicalize_dtype(dtype) == dtype
    check(known, "dtype", dtype, "float32 or bfloat16, or float64 with jax_enable_x64")
    folder = require_folder(Path(folder))
    model = Decoder(dataclasses.replace(read_config(folder, ignore), dtype=dtype, param_dtype=dtype))
    mesh = make_mesh(MeshConfig(), jax.local_devices()[:1]) if mesh is None else mesh
    return model, read_parameters(folder, model, mesh)


def read_parameters(folder: Path, model: Model, mesh: Mesh) -> Params:
    """The parameters of `model` from the tensors in a folder, sharded over `mesh`; a value head is 0.

    The tensors are checked against the model before the first one is read.
    """
    tensors, shapes = read_tensors(folder), model.abstract_params(mesh)
    prefix = prefixes(tensors)
    table = weights(model.vocab_size, shapes, prefix)
    _check(folder, tensors, table, prefix)
    if "unembedding" not in shapes and prefix.head in tensors:
        _check_tied(folder, tensors[prefix.head], tensors[table["embedding"].names[0]])
    flat = [_read(x, table.get(path), tensors) for path, x in leaves(shapes).items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), flat)


def _read(x: jax.ShapeDtypeStruct, weight: Weight | None, tensors: Mapping[str, Tensor]) -> jax.Array:
    """One parameter; 0 if it is not in the checkpoint."""
    done = {}  # devices that hold the same part share one copy

    def part(index: Any) -> np.ndarray:
        spans = tuple(range(*s.indices(n)) for s, n in zip(index, x.shape, strict=True))
        if spans not in done:
            done[spans] = out = _zeros([len(span) for span in spans], x.dtype)
            if weight is not None and weight.stacked:
                for row, name in zip(out, weight.names[index[0]], strict=True):
                    row[...] = weight.from_tensor(tensors[name].array())[index[1:]]
            elif weight is not None:
                values = weight.from_tensor(tensors[weight.names[0]].array())[index]
                out[: len(values)] = values  # the other rows are padding
        return done[spans]

    sharding = x.sharding
    parts = [
        jax.block_until_ready(jax.device_put(part(index), device))
        for device, index in sharding.addressable_devices_indices_map(x.shape).items()
    ]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, parts, dtype=x.dtype)


def _zeros(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Zeros that return to the system when deleted, unlike memory of `malloc`, and that JAX copies.

    JAX would share aligned memory on a CPU, and memory that it shares cannot be donated.
    """
    size = math.prod(shape)
    memory = mmap.mmap(-1, (size + 1) * dtype.itemsize)
    return np.frombuffer(memory, dtype, size, offset=dtype.itemsize).reshape(shape)


def _check(folder: Path, tensors: Mapping[str, Tensor], table: Mapping[str, Weight], prefix: Prefixes) -> None:
    """Raises ValueError unless the tensors are those of the model, apart from buffers, images and a tied table."""
    wanted = {name: weight.shape for weight in table.values() for name in weight.names}
    optional = {prefix.head: wanted[prefix.body + EMBEDDING]}  # in some checkpoints with tied tables
    for name in wanted:
        if name not in tensors:
            raise ValueError(f"{folder}: tensor {name!r} is missing: expected the {len(wanted)} tensors of config.json")
    for name, tensor in tensors.items():
        if is_apart(name, prefix):
            continue
        shape = wanted.get(name, optional.get(name))
        where = f"{tensor.path}: tensor {name!r}"
        if shape is None:
            raise ValueError(f"{where} is not in the model of config.json: expected its {len(wanted)} tensors only")
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{where} has dtype {tensor.dtype}: expected one of {', '.join(DTYPES)} (no quantization)")
        if tensor.shape != shape:
            raise ValueError(f"{where} has shape {shown(tensor.shape)}: expected {shape}, as in config.json")


def _check_tied(folder: Path, head: Tensor, embedding: Tensor) -> None:
    blocks = range(0, head.size, 2**24)
    if head.dtype != embedding.dtype or not all(
        np.array_equal(head.bytes()[i : i + 2**24], embedding.bytes()[i : i + 2**24]) for i in blocks
    ):
        raise ValueError(f"{folder}: the unembedding table differs from the embedding table: expected equal tables or "
                         "`\"tie_word_embeddings\": false` in config.json")  # fmt: skip
