"""The checkpoints that tools/hf_fixtures.py wrote, and how to compare a model with what `transformers` computed."""

import functools
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax.models import load

FOLDER = pathlib.Path(__file__).parent / "fixtures"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))


class Golden(NamedTuple):
    """Three rows of tokens, and what `transformers` computed from them in float32."""

    rows: list[np.ndarray]
    """Tokens of each row, [T]."""
    logps: list[np.ndarray]
    """log π(v | tokens up to this one) of each row, [T, V]."""
    greedy: np.ndarray
    """Greedy continuations, [3, N]."""


@functools.cache
def golden(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz") as file:
        ends = np.cumsum(file["lengths"])[:-1]
        return Golden(np.split(file["tokens"], ends), np.split(file["logps"], ends), file["greedy"])


@functools.cache
def loaded(name: str):
    """The model and the parameters of a fixture, in float32."""
    return load(FOLDER / name)


def layouts(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and segment ids [4, T]: the longest row unpadded, the others left-padded, and those packed in one row.

    The lengths of the two short rows sum to T.
    """
    long, *short = rows
    padded = [np.pad(row, (len(long) - len(row), 0)) for row in short]
    present = [np.arange(len(long)) >= len(long) - len(row) for row in short]
    packed = np.repeat(np.int32([1, 2]), [len(row) for row in short])
    tokens = np.stack([long, *padded, np.concatenate(short)])
    return tokens, np.stack([np.ones_like(long), *present, packed]).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def log_softmax(model, params, tokens, segment_ids):
    """log π [B, T, V] after each token."""
    head = model.head(params)
    logits = jnp.einsum("btd,vd->btv", model.hidden(params, tokens, segment_ids), head.table[: head.vocab_size])
    if head.softcap is not None:
        logits = head.softcap * jnp.tanh(logits / head.softcap)
    return jax.nn.log_softmax(logits, axis=-1)


def differences(model, params, golden: Golden) -> np.ndarray:
    """Largest |log π − that of `transformers`| of the row unpadded, of the two left-padded, and of the packed row."""
    found = np.asarray(log_softmax(model, params, *layouts(golden.rows)))
    long, first, second = golden.logps
    pairs = (found[0], long), (found[1, -len(first) :], first), (found[2, -len(second) :], second)
    packed = found[3], np.concatenate([first, second])
    return np.array([np.abs(a - b).max() for a, b in (*pairs, packed)])


def tensors(folder: pathlib.Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """(dtype, shape, bytes) of each tensor in the safetensors files of `folder`, read without any library."""
    found = {}
    for path in folder.glob("*.safetensors"):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name != "__metadata__":
                a, b = (start + offset for offset in entry["data_offsets"])
                found[name] = entry["dtype"], tuple(entry["shape"]), content[a:b]
    return found
