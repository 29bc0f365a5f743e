"""token_stats' Triton kernel in Pallas' interpreter, mutants of it, and the programs lowered for CUDA."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import sharding

from pallas_kernels import token_stats
from pallas_kernels._dispatch import axes_of, varying_over
from pallas_kernels._vocabulary.statistics import Sums
from pallas_kernels._vocabulary.types import ABSENT, ELSEWHERE, Head, Tile
from pallas_kernels._vocabulary.vjp import Passes, Plan, rule
from pallas_kernels.token_stats import gpu, gpu_xla

# jax 0.12 deprecates Pallas' Triton backend in favor of Mosaic GPU's.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

LAUNCH = gpu.Launch(width=64, interpret=True)  # 16 columns of D per step in float32
H100 = sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
QUICK = {"xla_backend_optimization_level": 0}
TRITON, SMALL = "xla.gpu.triton", Tile(16, 16)
SIZES = [  # (N, D, V), number of columns that are not padding: multiples of the tile, ragged, one
    ((32, 32, 48), 48),
    ((37, 35, 70), 67),
    ((1, 1, 1), 1),
]


def example(n, d, v, size=None, dtype=jnp.float32, bias=True, softcap: float | None = 3.0):
    """(hidden, head, targets); if n > 4, one row's target is ELSEWHERE, and one row has none and holds NaN."""
    rng, size = np.random.default_rng(n), size or v
    hidden, unembedding = (rng.normal(size=(rows, d)).astype(dtype) for rows in (n, v))
    targets = rng.integers(0, size, n)
    targets[-1] = size - 1
    if n > 4:
        targets[1:3] = ELSEWHERE, ABSENT
        hidden[2] = np.nan
    b = rng.normal(size=v).astype(dtype) if bias else None
    cap = softcap if softcap is None else np.float32(softcap)
    return hidden, Head(unembedding, b, np.float32(1.3), cap, size), np.int32(targets)


def in_numpy(hidden, head: Head, targets) -> Sums:
    h, w, y = np.asarray(hidden, float), np.asarray(head.unembedding, float)[: head.size], np.asarray(targets)
    z = h @ w.T + (0 if head.bias is None else np.asarray(head.bias, float)[None, : head.size])
    x = float(head.beta) * (z if head.softcap is None else head.softcap * np.tanh(z / head.softcap))
    is_target = np.arange(len(w)) == y[:, None]
    top = x.max(1)
    d = x - top[:, None]
    e = np.where(is_target, 0, np.exp(d))
    return Sums(top, np.where(is_target, x, 0).sum(1), e.sum(1), (e * e).sum(1), (d * e).sum(1))


def check(actual: Sums, expected: Sums, targets, tolerance=3e-5):
    present = np.asarray(targets) != ABSENT
    for name, a, e in zip(Sums._fields, map(np.asarray, actual), expected, strict=True):
        assert a.shape == targets.shape
        np.testing.assert_allclose(a[present], e[present], tolerance, tolerance, err_msg=name)


def interpreted(hidden, head, targets):
    """The kernel's sums in the interpreter, traced again so that a test's patches apply."""

    def run(hidden, arrays, targets):
        return gpu.sums(hidden, arrays._replace(size=head.size), targets, SMALL, LAUNCH)

    return jax.jit(run, compiler_options=QUICK)(hidden, head._replace(size=0), targets)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Limits the number of programs, so that each visits several tiles of the vocabulary."""
    monkeypatch.setattr(gpu, "PROGRAMS", 6)


@pytest.mark.parametrize(("sizes", "size"), SIZES)
def test_the_kernels_sums_are_right_for_every_shape(sizes, size: int):
    inputs = example(*sizes, size=size)
    check(interpreted(*inputs), in_numpy(*inputs), inputs[2])


def test_groups_and_parts_of_any_number(monkeypatch):
    """Three groups of two tiles of tokens and five splits of two tiles of columns; the last of each has one tile."""
    monkeypatch.setattr(gpu, "GROUP", 32)
    monkeypatch.setattr(gpu, "PROGRAMS", 10)
    inputs = example(70, 8, 140, bias=False, softcap=None)
    check(interpreted(*inputs), in_numpy(*inputs), inputs[2])


def test_bfloat16_under_vmap():
    """Products of bfloat16 are exact in float32, so the float32 tolerance applies."""
    hidden, head, targets = example(20, 24, 40, 33, jnp.bfloat16, bias=False, softcap=None)
    hiddens, many = np.stack([hidden, -hidden]), np.stack([targets, targets])
    for i, found in enumerate(zip(*jax.vmap(lambda h, y: interpreted(h, head, y))(hiddens, many), strict=True)):
        check(Sums(*found), in_numpy(hiddens[i], head, targets), targets)


def test_shards_of_the_vocabulary_and_the_gradients():
    """A vocabulary of 37 on 4 devices with 10 rows each; Pallas' interpreter does not support check_vma.

    Logits are about 2: larger ones reduce the accuracy of float32 gradients, depending on the version of jax.
    """
    run = rule(Plan(Passes(partial(gpu.sums, launch=LAUNCH), gpu.gradients), SMALL, 37, "v", None))
    mesh = jax.make_mesh((4,), ("v",), axis_types=(sharding.AxisType.Auto,))
    split = on_shards(run, mesh, check_vma=False)
    hidden, head, targets = example(20, 24, 40, 37)
    hidden[2], targets = 0, np.where(targets == ELSEWHERE, ABSENT, targets)
    hidden *= np.float32(24**-0.5)

    def loss(function):
        return lambda h, w: sum(jnp.sum(jnp.cos(jnp.arange(20.0) + i) * x) for i, x in enumerate(function(h, w)))

    def dense(h, w):
        return token_stats(h, w, targets, temperature=0.5, vocab_size=37, implementation="reference")

    pair = [loss(lambda h, w: split(h, w, targets)), loss(dense)]
    found, expected = jax.jit(lambda *x: [jax.value_and_grad(f, (0, 1))(*x) for f in pair])(hidden, head.unembedding)
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, 1e-5, 1e-6 * np.abs(e).max())
        assert np.abs(e).max() > 1e-2


def on_shards(run, mesh, check_vma):
    def shard(hidden, unembedding, targets):
        inputs = varying_over(axes_of(unembedding), hidden, unembedding, None, targets, jnp.float32(2.0), None)
        found = run(*inputs)
        return jax.tree.map(lambda x: x if check_vma is False else jax.lax.pmax(x, "v"), found)

    specs = sharding.PartitionSpec(), sharding.PartitionSpec("v"), sharding.PartitionSpec()
    return jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=sharding.PartitionSpec(), check_vma=check_vma)


MUTANTS = {
    "a dropped tile of the vocabulary": (gpu.pl, "cdiv", lambda a, b: rounded_down(70, a, b)),
    "a dropped step of the width": (gpu.pl, "cdiv", lambda a, b: rounded_down(35, a, b)),
    "an unmasked tail": (gpu, "_inside", lambda end, start, size: jnp.ones(size, bool)),
    "columns that are padding": (gpu, "BANNED", 0.0),
    "a missing rescale": (gpu, "absorbed", lambda *inputs: without_rescale(*inputs)),
    "parts added without their maxima": (gpu, "rescaled", lambda sums, top: sums._replace(top=top)),
    "the first part of the vocabulary alone": (gpu.Grid, "place", lambda grid, program: (program % grid.tiles, 0)),
}
absorbed = gpu.absorbed


def rounded_down(size, a, b):
    return a // b if isinstance(a, int) and a == size else -(-a // b)


def without_rescale(sums, x, is_target):
    own = absorbed(sums._replace(top=jnp.full_like(sums.top, gpu.BANNED)), x, is_target)
    return own._replace(top=jnp.maximum(own.top, sums.top))


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(monkeypatch, name):
    inputs = example(*SIZES[1][0], size=SIZES[1][1])
    monkeypatch.setattr(*MUTANTS[name])
    with pytest.raises(AssertionError):
        check(interpreted(*inputs), in_numpy(*inputs), inputs[2])


def lowered(function, *shapes, platform="cuda"):
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    with jax.sharding.use_abstract_mesh(sharding.AbstractMesh((), (), abstract_device=H100)):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text(debug_info=True)


def in_scope(implementation, text, part=""):
    """Whether the program has an operation in the scope; `jvp` and `transpose` add parentheses to scopes."""
    return re.search(rf"token_stats_{implementation}\)*/{part}", text) is not None


def shapes(n, d, v, dtype=jnp.bfloat16):
    return ((n, d), dtype), ((v, d), dtype), ((n,), jnp.int32)


def step(implementation, **options):
    def loss(*inputs):
        return sum(jnp.sum(x) for x in token_stats(*inputs, implementation=implementation, **options))

    return jax.value_and_grad(loss, (0, 1))


@pytest.mark.parametrize("sizes", [(8192, 4096, 151936), (1, 1, 1)])
def test_gpu_selects_the_kernel_and_xlas_tiles(sizes):
    text = lowered(step("gpu", softcap=30.0), *shapes(*sizes))
    assert text.count(f"custom_call @__gpu${TRITON}") == 1
    assert in_scope("gpu", text, "triton")
    assert in_scope("gpu", text, "tiled")


def test_the_default_is_xlas_tiles_on_a_gpu_and_chunked_elsewhere():
    for platform, holds, lacks in (("cuda", "gpu", "chunked"), ("cpu", "chunked", "gpu")):
        text = lowered(step(None), *shapes(8192, 512, 40960), platform=platform)
        assert in_scope(holds, text)
        assert not in_scope(lacks, text)
        assert in_scope("gpu", text, "tiled") == (platform == "cuda")
        assert TRITON not in text


def test_the_kernel_within_a_shard_map_and_under_vmap():
    run = rule(Plan(Passes(gpu.sums, gpu.gradients), None, 37, "v", None))
    inputs = shapes(20, 24, 40)
    mesh = sharding.AbstractMesh((4,), ("v",), (sharding.AxisType.Auto,), abstract_device=H100)
    assert TRITON in lowered(on_shards(run, mesh, check_vma=True), *inputs)
    twice = jax.vmap(jax.vmap(partial(token_stats, implementation="gpu"), (0, None, 0)), (0, None, 0))
    assert TRITON in lowered(twice, ((2, 3, 20, 24), jnp.float32), ((40, 24), jnp.float32), ((2, 3, 20), jnp.int32))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_kernel_elsewhere_is_an_error(platform):
    with pytest.raises(NotImplementedError, match=f"implementation = 'gpu': expected an NVIDIA GPU, not {platform}"):
        lowered(partial(token_stats, implementation="gpu"), *shapes(16, 16, 16), platform=platform)


def test_what_the_kernel_does_not_take():
    with pytest.raises(ValueError, match=r"tile = \(128, 100\): expected two powers of two"):
        lowered(step("gpu", tile=(128, 100)), *shapes(16, 16, 16))
    with jax.enable_x64(True), pytest.raises(TypeError, match="implementation = 'gpu' for float64"):
        lowered(step("gpu"), *shapes(16, 16, 16, jnp.float64))


@pytest.mark.parametrize("size", [(8192, 151936), (5000, 151936), (100000, 128256), (3, 10**6 + 1), (8, 8)])
def test_xlas_tiles_are_large_and_bounded(size):
    tile = gpu_xla.best_tile(*size)
    assert np.prod(tile) <= gpu_xla.LOGITS
    assert np.prod(tile) >= min(np.prod(size), gpu_xla.LOGITS // 2)
    assert all(side == whole or side % 8 == 0 for side, whole in zip(tile, size, strict=True))
