"""Hugging Face folders written from models and parameters."""

import contextlib
import errno
import fnmatch
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

from rljax._checks import check
from rljax._folders import inside, read_json, require_folder
from rljax.models.decoder import Decoder
from rljax.models.huggingface import files
from rljax.models.huggingface.architecture import describe, differences
from rljax.models.huggingface.config import read_config
from rljax.models.huggingface.weights import TEXT, Weight, is_apart, leaves, prefixes, weights
from rljax.models.protocol import Params, without_value_head
from rljax.models.transformer import TransformerConfig

Stored = Literal["float32", "bfloat16", "float16", "float64"]
CODES = {dtype.name: code for code, dtype in files.DTYPES.items()}
SHARD = 4 * 2**30  # bytes of a file at most, unless one parameter is larger

# Names in lower case of the files of `like` that also belong to a fine-tuned copy. Its README describes other weights.
COPIED = (
    "tokenizer*.json", "tokenizer.model*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template*", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "*license*", "*notice*", "*use_policy*",
)  # fmt: skip


class Group(NamedTuple):
    """The tensors of a file that are written together."""

    entries: list[tuple[str, str, tuple[int, ...]]]
    """(name, dtype code, shape) of each tensor."""
    size: int
    """Bytes of all of them."""
    values: Callable[[], Iterable[np.ndarray]]


def save(
    folder: str | Path, model: Decoder, params: Params, *, like: str | Path | None = None, dtype: Stored | None = None
) -> None:
    """Writes a Hugging Face folder that transformers and vLLM read, with config.json and safetensors.

    The value head is left out. If there are several processes, all must call this function: parameters are gathered one
    at a time, and process 0 writes; if writing fails, only process 0 raises. The folder appears when it is complete.

    Args:
        folder: The folder to write. It must be empty or not exist.
        model: The model.
        params: Its parameters.
        like: The folder that `model` was loaded from. Its config.json, image tensors, tokenizer, generation config,
            licenses, notices and use policies are copied. By default, config.json is that of the architecture in
            transformers that equals `model`.
        dtype: Dtype of the tensors; by default that of `params`.

    Raises:
        ValueError: If no architecture equals `model` (the message names an option), if `like` holds a different model,
            if `folder` is not empty, or if a parameter is not finite in `dtype`.
        OSError: If the disk is full. Nothing is left behind.
        ImportError: If the package safetensors is not installed.
    """
    files.library()
    folder, like = Path(folder), None if like is None else require_folder(Path(like))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"folder = {str(folder)!r} exists: expected a new folder or an empty one")
    params = without_value_head(params)
    stored = params["embedding"].dtype.name if dtype is None else dtype
    check(stored in CODES, "dtype", stored, f"one of {', '.join(CODES)}")
    config = json.dumps(_config(model, like, stored), indent=2) + "\n"
    gathered = map(_gather, leaves(params).values())
    groups = _groups(model, params, like, stored, gathered)
    _wait_for_all("rljax.models.save checks")  # before process 0 makes the folder that the others must not find
    try:
        if jax.process_index() == 0:
            with _complete(folder, sum(group.size for group in groups)) as temporary:
                _write(temporary, groups)
                (temporary / "config.json").write_text(config, encoding="utf-8")
                if like is not None:
                    _copy(like, temporary)
    finally:
        for _ in gathered:  # all processes take part in gathering, also if writing failed
            pass
        _wait_for_all("rljax.models.save")


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _config(model: Decoder, like: Path | None, dtype: str) -> dict[str, Any]:
    """The contents of config.json."""
    config = model.config
    if not isinstance(config, TransformerConfig):
        raise ValueError(f"model.config = {config!r}: expected a TransformerConfig")
    if like is None:
        return describe(config) | {"torch_dtype": dtype}
    for option, other in differences(config, read_config(like, ignore=None)).items():
        raise ValueError(f"model: {option} = {getattr(config, option)!r}: expected {other!r}, as in like = "
                         f"{str(like)!r}")  # fmt: skip
    values = read_json(like, "config.json")
    values.pop("auto_map", None)  # names code of the folder, which is not copied
    for part in (values, values.get("text_config") or {}):
        part |= {key: dtype for key in ("torch_dtype", "dtype") if key in part}
    return values if {"torch_dtype", "dtype"} & set(values) else values | {"torch_dtype": dtype}


def _gather(x: Array) -> np.ndarray:
    """The whole array on every process."""
    if not x.is_fully_addressable:
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(jnp.array(x, copy=True))  # without the copy, x would keep the result until x is deleted


def _groups(
    model: Decoder, params: Params, like: Path | None, dtype: str, gathered: Iterator[np.ndarray]
) -> list[Group]:
    """All tensors, in the order of the parameters in `gathered`."""
    tensors = {} if like is None else files.read_tensors(like)
    prefix = prefixes(tensors) if tensors else TEXT
    groups = []
    for path, weight in weights(model.vocab_size, params, prefix).items():
        names = weight.names
        if path == "embedding" and "unembedding" not in params and prefix.head in tensors:
            names += (prefix.head,)
        code = CODES[dtype]
        size = len(names) * math.prod(weight.shape) * files.DTYPES[code].itemsize
        entries = [(name, code, weight.shape) for name in names]
        groups.append(Group(entries, size, partial(_values, weight, len(names), files.DTYPES[code], gathered)))
    for name, tensor in tensors.items():
        if is_apart(name, prefix):
            groups.append(Group([(name, tensor.dtype, tensor.shape)], tensor.size, lambda x=tensor: [x.bytes()]))
    return groups


def _values(weight: Weight, count: int, dtype: np.dtype, gathered: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The `count` tensors of the next parameter."""
    whole = next(gathered)
    for i in range(count):
        part = whole[i] if weight.stacked else whole[: weight.sizes[0]]  # without padding rows
        with np.errstate(over="ignore"):
            part = weight.to_tensor(part).astype(dtype)
        if not np.isfinite(part).all():
            raise ValueError(f"tensor {weight.names[0]!r}: expected numbers that are finite in {dtype}")
        yield part


@contextlib.contextmanager
def _complete(folder: Path, size: int) -> Iterator[Path]:
    """A temporary folder beside `folder` that is renamed at the end; it is deleted if anything fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    full = f"folder = {str(folder)!r}: expected {size:,} free bytes on its disk"
    if shutil.disk_usage(folder.parent).free < size:
        raise OSError(errno.ENOSPC, full)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, full) from error
        raise


def _write(folder: Path, groups: list[Group]) -> None:
    """Writes one file, or several and their index."""
    shards, free = [[]], SHARD
    for group in sorted(groups, key=_itemsize, reverse=True):  # wide dtypes first keeps every tensor aligned
        if group.size > free and shards[-1]:
            shards.append([])
            free = SHARD
        shards[-1].append(group)
        free -= group.size
    if len(shards) == 1:
        return _write_file(folder / files.SINGLE, shards[0])
    where = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        _write_file(folder / name, shard)
        where |= {entry[0]: name for group in shard for entry in group.entries}
    index = {"metadata": {"total_size": sum(group.size for group in groups)}, "weight_map": where}
    (folder / files.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _itemsize(group: Group) -> int:
    *_, shape = group.entries[0]
    return group.size // max(1, len(group.entries) * math.prod(shape))


def _write_file(path: Path, groups: list[Group]) -> None:
    """Writes a safetensors file tensor by tensor, so that only one parameter is in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for group in groups:
        size = group.size // len(group.entries)
        for name, code, shape in group.entries:
            header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for group in groups:
            for values in group.values():
                file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    files.read_header(path)


def _copy(like: Path, folder: Path) -> None:
    for path in sorted(like.iterdir()):
        if path.is_file() and any(fnmatch.fnmatchcase(path.name.lower(), pattern) for pattern in COPIED):
            shutil.copyfile(inside(like, path.name), folder / path.name)
