"""The TPU kernel of the segmented scans in Pallas' interpreters, and the programs that it is lowered into."""

import itertools
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import segmented_cummin, segmented_cumsum
from pallas_kernels.segmented_cumsum import _gradients, tpu
from pallas_kernels.segmented_cumsum._monoids import MINIMUM, SUM

DIRECTIONS = list(itertools.product((False, True), repeat=2))  # reverse, exclusive
STRICT = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", num_cores_or_threads=2)


QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch):
    """Three blocks per row of 300 tokens, of which the last extends past the end."""
    monkeypatch.setattr(tpu, "TOKENS", 128)


def example(rows=9, length=300):
    """(x, ids): integers, so that sums are exact, and NaN in holes; sequences shorter and longer than a block."""
    rng = np.random.default_rng(0)
    often = np.array([0.2, 0.01, 0.0])[np.arange(rows) % 3, None]
    ids = 1 + np.cumsum(rng.random((rows, length)) < often, axis=1)
    ids[2] = np.iinfo(np.int32).max  # the interpreters' value of uninitialized memory
    ids = np.where(rng.random((rows, length)) < 0.25, 0, ids).astype(np.int32)
    ids[[0, 2], 100:260] = 0  # a whole block of holes, between two sequences and within one
    return np.where(ids != 0, rng.integers(-50, 50, (rows, length)), np.nan).astype(np.float32), ids


def strictly(function, *arrays):
    """Runs in the TPU interpreter, which detects races and uninitialized memory."""
    with pltpu.force_tpu_interpret_mode(STRICT):
        return jax.block_until_ready(jax.jit(function, compiler_options=QUICK)(*arrays))


def plainly(function, *arrays):
    with mock.patch.object(tpu.pl, "pallas_call", partial(tpu.pl.pallas_call, interpret=True)):
        return jax.jit(function)(*arrays)


def by_name(operation, x, ids, reverse, exclusive):
    function = {SUM: segmented_cumsum, MINIMUM: segmented_cummin}[operation]
    return function(x, ids, reverse=reverse, exclusive=exclusive, implementation="reference")


def check_agreement(interpreted, cases):
    x, ids = example()

    def of_all(x, ids):
        return [tpu.segmented_scan(operation, x, ids, *direction) for operation, *direction in cases]

    expected = jax.jit(lambda x, ids: [by_name(operation, x, ids, *direction) for operation, *direction in cases])
    for case, y, right in zip(cases, interpreted(of_all, x, ids), expected(x, ids), strict=True):
        np.testing.assert_array_equal(y, right, err_msg=str(case))


CASES = [(operation, *direction) for operation in (SUM, MINIMUM) for direction in DIRECTIONS]


def test_agrees_with_the_reference():
    check_agreement(plainly, CASES)


def test_agrees_with_the_reference_on_two_cores_that_do_not_race(capfd):
    check_agreement(strictly, [(SUM, False, False), (SUM, True, True), (MINIMUM, True, False)])
    assert "RACE" not in "".join(capfd.readouterr())  # some versions of the interpreter only print it


def test_a_mask_leading_axes_and_a_short_row():
    x, ids = example(length=40)
    x, mask = x.reshape(3, 3, 40), (ids != 0).reshape(3, 3, 40)
    y = plainly(partial(tpu.segmented_scan, SUM, reverse=False, exclusive=False), x, mask)
    np.testing.assert_array_equal(y, jax.jit(partial(segmented_cumsum, implementation="reference"))(x, mask))


@pytest.mark.parametrize("operation", [SUM, MINIMUM], ids=["sum", "minimum"])
def test_gradients_agree(operation):
    x, ids = example(rows=3)
    x = np.where(ids != 0, x + np.linspace(0, 0.5, x.shape[1], dtype=np.float32), 0)  # no two equal
    differentiable = {SUM: _gradients.cumsum, MINIMUM: _gradients.cummin}[operation]

    def loss(scan, x, ids):
        y = scan(x, ids, False, True)
        return jnp.sum(jnp.where(jnp.isfinite(y), jnp.arange(y.shape[1], dtype=y.dtype)[None] * y, 0))

    gradient = plainly(jax.grad(partial(loss, partial(differentiable, tpu.segmented_scan))), x, ids)
    expected = jax.jit(jax.grad(partial(loss, partial(by_name, operation))))(x, ids)
    np.testing.assert_array_equal(gradient, expected)
    assert np.max(np.abs(expected)) > 100


def drops_the_carry(monkeypatch):
    monkeypatch.setattr(tpu.pl, "when", lambda condition: lambda body: body())


def does_not_reset(monkeypatch):
    monkeypatch.setattr(tpu, "_kernel", lambda *args: KERNEL(*args[:5], Whole(args[5]), *args[6:]))


def unmasked_tail(monkeypatch):
    monkeypatch.setattr(tpu, "_kernel", lambda *args: KERNEL(*args[:3], 384, *args[4:]))


def wraps_around(monkeypatch):
    def earlier(reverse, distance, ids, x):
        shift = tpu.TOKENS - distance if reverse else distance
        return pltpu.roll(ids, shift, axis=1), pltpu.roll(x, shift, axis=1)

    monkeypatch.setattr(tpu, "_earlier", earlier)


KERNEL = tpu._kernel


class Whole:
    """A Pallas reference to ids that reads every non-zero id as 1."""

    def __init__(self, ids):
        self.ids = ids

    def __getitem__(self, at):
        return jnp.minimum(self.ids[at], 1)


@pytest.mark.parametrize("mutant", [drops_the_carry, does_not_reset, unmasked_tail, wraps_around])
def test_mutants_fail(monkeypatch, mutant):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check_agreement(strictly if mutant is unmasked_tail else plainly, [(SUM, True, False)])


def lowered(function, platform, *arrays, x=jnp.float32):
    arrays = arrays or (jax.ShapeDtypeStruct((16, 300), x), jax.ShapeDtypeStruct((16, 300), jnp.int32))
    return jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,)).as_text(debug_info=True)


@pytest.mark.parametrize("function", [segmented_cumsum, segmented_cummin])
def test_the_platform_or_the_name_selects_the_implementation(function):
    name = function.__name__
    gradient = jax.grad(lambda x, ids: jnp.sum(function(x, ids)))
    for run in (function, gradient, jax.vmap(function), jax.vmap(jax.vmap(function, (None, 0)), (0, None))):
        leading = (2, 2) if run not in (function, gradient) else ()
        given = [jax.ShapeDtypeStruct((*leading, 3, 300), dtype) for dtype in (jnp.float32, jnp.int32)]
        on_tpu, on_cpu = (lowered(run, platform, *given) for platform in ("tpu", "cpu"))
        assert f"{name}_tpu" in on_tpu
        assert "tpu_custom_call" in on_tpu
        assert f"{name}_chunked" not in on_tpu
        assert f"{name}_chunked" in on_cpu
        assert f"{name}_tpu" not in on_cpu
    assert f"{name}_chunked" in lowered(partial(function, implementation="chunked"), "tpu")
    assert f"{name}_tpu" in lowered(partial(function, implementation="tpu"), "tpu")
    assert f"{name}_chunked" in lowered(function, "cuda")


def test_float64_goes_to_the_loop_or_is_refused():
    with jax.enable_x64(True):
        assert "tpu_custom_call" not in lowered(segmented_cumsum, "tpu", x=jnp.float64)
        with pytest.raises(TypeError, match="x has dtype float64: expected float32"):
            lowered(partial(segmented_cumsum, implementation="tpu"), "tpu", x=jnp.float64)
        assert "tpu_custom_call" in lowered(segmented_cumsum, "tpu")


MESH = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])


@pytest.mark.parametrize("check_vma", [True, False])
def test_on_several_devices_it_needs_a_shard_map(check_vma):
    split = jax.NamedSharding(MESH, P("data"))
    given = [jax.ShapeDtypeStruct((16, 300), dtype, sharding=split) for dtype in (jnp.float32, jnp.int32)]
    divided = jax.shard_map(segmented_cumsum, mesh=MESH, in_specs=P("data"), out_specs=P("data"), check_vma=check_vma)
    gradient = jax.grad(lambda x, ids: jnp.sum(divided(x, ids)))
    for function in (divided, gradient, jax.checkpoint(gradient)):
        assert "segmented_cumsum_tpu" in lowered(function, "tpu", *given)
    assert "segmented_cumsum_chunked" in lowered(segmented_cumsum, "tpu", *given)
    with pytest.raises(
        NotImplementedError, match="implementation = 'tpu': expected a TPU, or several within a shard_map"
    ):
        lowered(partial(segmented_cumsum, implementation="tpu"), "tpu", *given)
