"""Files of a Hugging Face folder, read without trusting their contents."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from rljax._folders import inside, read_json, shown

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HEADER_LIMIT = 100_000_000  # bytes, the limit of the safetensors library


class Tensor(NamedTuple):
    """A tensor in a safetensors file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Position of its first byte in the file."""
    size: int
    """Number of bytes."""

    def bytes(self) -> np.ndarray:
        """The bytes, mapped from the file: they are read when they are used."""
        return np.memmap(self.path, np.uint8, "r", self.start, (self.size,)) if self.size else np.zeros(0, np.uint8)

    def array(self) -> np.ndarray:
        """The numbers in their shape, mapped from the file."""
        return self.bytes().view(DTYPES[self.dtype]).reshape(self.shape)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors or, if it does not exist, of the files in model.safetensors.index.json.

    Only headers are read. Raises FileNotFoundError if a file is missing, and ValueError if a file is not valid or does
    not contain the tensors that the index names.
    """
    if (folder / SINGLE).exists():
        return read_header(inside(folder, SINGLE))
    if not (folder / INDEX).exists():
        raise FileNotFoundError(f"{folder}: {SINGLE} and {INDEX} do not exist: expected one of them{_pickles(folder)}")
    index = read_json(folder, INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise ValueError(
            f"{folder / INDEX}: weight_map = {shown(index)}: expected an object with a file name per tensor"
        )
    for file in index.values():
        if not file.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX}: file = {file!r}: expected a .safetensors file")
    found = {}
    for file, path in {file: inside(folder, file) for file in sorted(set(index.values()))}.items():
        tensors = read_header(path)
        named = {name for name, where in index.items() if where == file}
        for name in sorted(named ^ set(tensors)):
            wanted = "is missing from" if name in named else "is not in the index but in"
            raise ValueError(f"{folder / INDEX}: tensor {name!r} {wanted} {file}: expected an index of all tensors")
        found |= tensors
    return found


def _pickles(folder: Path) -> str:
    found = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if not found:
        return ""
    return f", found {found[0]}, which is a pickle: loading it could run any code, so convert it to safetensors first"


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, checked by the safetensors library.

    Raises ValueError if the file is not valid; the message names the tensor if the error is in one.
    """
    safetensors = library()
    header, start = _header(path)
    size = path.stat().st_size
    tensors = {name: _tensor(path, name, entry, start, size) for name, entry in header.items()}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            names = set(file.keys())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: expected a valid safetensors file ({error})") from error
    if names != set(tensors):
        raise ValueError(f"{path}: expected a header with each tensor once")
    return tensors


def library():
    """The package safetensors; raises ImportError with the command that installs it."""
    try:
        import safetensors
    except ImportError as error:
        raise ImportError("Hugging Face models need the package safetensors: pip install 'rljax-llm[hf]'") from error
    return safetensors


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The entries of a safetensors header without its metadata, and the position of the first byte after it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size - 8, _HEADER_LIMIT):
            raise ValueError(f"{path}: expected a safetensors file, found a header of {length:,} bytes in a file of "
                             f"{path.stat().st_size:,} bytes (truncated, or another format)")  # fmt: skip
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a safetensors file, found a header that is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: expected a safetensors file, found a header that is not an object")
    header.pop("__metadata__", None)
    return header, 8 + length


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> Tensor:
    """The tensor of a header entry, checked against the size of the file."""
    where = f"{path}: tensor {name!r}"
    try:
        dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, first, last)
        if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise ValueError(
            f"{where}: expected dtype, shape and data_offsets in the header, found {shown(entry)}"
        ) from None
    if start + last > size:
        raise ValueError(f"{where} is truncated: expected bytes up to {start + last:,}, found {size:,} in the file")
    if dtype in DTYPES and last - first != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{where} has {last - first:,} bytes: expected {math.prod(shape) * DTYPES[dtype].itemsize:,}, "
                         f"since its shape is {shown(shape)} and its dtype {dtype}")  # fmt: skip
    return Tensor(path, dtype, shape, start + first, last - first)
