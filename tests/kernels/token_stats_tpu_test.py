"""The TPU kernels of token_stats in Pallas' interpreters, against the dense reference; mutants.

The plain interpreter is fast. The TPU interpreter initializes memory to NaN, checks bounds and detects races. Errors
that only the compiler finds are covered by `make tpu-compile`.
"""

import contextlib
import functools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import token_stats
from pallas_kernels._vocabulary.statistics import Slope, no_columns
from pallas_kernels._vocabulary.types import ABSENT, ELSEWHERE, Head, Tile, TokenStats
from pallas_kernels.token_stats import chunked, tpu
from pallas_kernels.token_stats.tpu import backward_hidden, backward_tile, backward_weight, generations
from pallas_kernels.token_stats.tpu import forward as forward_pass

TILE = (128, 128)
STRICT = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", num_cores_or_threads=2)
QUICK = {"xla_backend_optimization_level": 0}


class Case(NamedTuple):
    n: int
    d: int
    v: int
    dtype: type = jnp.float32
    size: int | None = None
    bias: bool = False
    softcap: float | None = None


CASES = [
    Case(200, 70, 300, bias=True),
    Case(300, 64, 520, jnp.bfloat16, size=460, bias=True, softcap=3.0),
    Case(130, 40, 384, jnp.bfloat16),
    Case(129, 3, 130, softcap=2.0, size=127),
    Case(1, 1, 1),
]


@contextlib.contextmanager
def interpreter(monkeypatch, checked: bool):
    if checked:
        try:
            with pltpu.force_tpu_interpret_mode(STRICT):
                yield
        finally:
            pltpu.reset_tpu_interpret_mode_state()
    else:
        with monkeypatch.context() as patch:
            patch.setattr(pl, "pallas_call", partial(pl.pallas_call, interpret=True))
            patch.setattr(lax, "fori_loop", rolled)  # no unrolling, for short compile times
            yield


def rolled(lower, upper, body, init, unroll=None, fori_loop=lax.fori_loop):
    return fori_loop(lower, upper, body, init)


def example(case: Case):
    """(hidden, unembedding, targets, bias, mask, cotangents); masked rows of hidden are NaN."""
    rng = np.random.default_rng(case.n)
    columns = case.v if case.size is None else case.size
    hidden = rng.normal(size=(case.n, case.d)) / np.sqrt(case.d)
    targets = rng.integers(0, columns, case.n)
    mask = rng.random(case.n) < 0.8
    mask[: case.n // 2 + 1] = True
    hidden[~mask] = np.nan
    hidden, unembedding = (x.astype(case.dtype) for x in (hidden, 3 * rng.normal(size=(case.v, case.d))))
    bias = np.float32(rng.normal(size=case.v)) if case.bias else None
    cotangents = TokenStats(*np.float32(rng.normal(size=(3, case.n))))
    return hidden, unembedding, np.int32(targets), bias, mask, cotangents


def loss_of(case: Case, implementation: str, wanted=(0, 1, 2)):
    """(loss function, its inputs: hidden, unembedding and, if the case has one, bias).

    The function returns (Σ cotangents · wanted outputs, TokenStats). The reference gets the inputs in float32, in which
    products of bfloat16 are exact.
    """
    hidden, unembedding, targets, bias, mask, cotangents = example(case)
    given = dict(temperature=1.3, softcap=case.softcap, mask=mask, vocab_size=case.size, implementation=implementation)
    if implementation == "reference":
        hidden, unembedding = hidden.astype(np.float32), unembedding.astype(np.float32)
    else:
        given["tile"] = TILE

    def loss(hidden, unembedding, bias=None):
        stats = token_stats(hidden, unembedding, targets, bias=bias, **given)
        return sum(jnp.sum(cotangents[i] * stats[i]) for i in wanted), stats

    return loss, (hidden, unembedding) if bias is None else (hidden, unembedding, bias)


def quickly(function):
    return jax.jit(function, compiler_options=QUICK)


def values_and_gradients(case: Case, implementation: str, wanted=(0, 1, 2)):
    loss, inputs = loss_of(case, implementation, wanted)
    (_, stats), gradients = quickly(jax.value_and_grad(loss, range(len(inputs)), has_aux=True))(*inputs)
    return stats, gradients


@functools.cache
def forward(case: Case):
    """(TokenStats of the kernels, pullback for `backward`, which traces the backward kernels when it is called)."""
    loss, inputs = loss_of(case, "tpu")
    _, pull, stats = quickly(lambda *inputs: jax.vjp(loss, *inputs, has_aux=True))(*inputs)
    return stats, pull


def backward(pull):
    return quickly(lambda cotangent: pull(cotangent))(np.float32(1))


@functools.cache
def expected(case: Case, wanted=(0, 1, 2)):
    return values_and_gradients(case, "reference", wanted)


def error(found, expected) -> float:
    """The greatest difference relative to the greatest expected entry, over all arrays; infinite for NaN."""

    def error(x, y):
        x, y = (np.asarray(array).astype(np.float32) for array in (x, y))
        distance = np.max(np.abs(x - y)) / max(np.max(np.abs(y)), 1e-6)
        return np.inf if np.isnan(distance) else distance

    return max(map(error, found, expected))


def agrees(found, case: Case, wanted=(0, 1, 2)) -> bool:
    value, gradient = map(error, found, expected(case, wanted))
    return value < 1e-5 and gradient < (2e-5 if case.dtype == jnp.float32 else 2**-7)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_reference(monkeypatch, case):
    with interpreter(monkeypatch, checked=False):
        stats, pull = forward(case)
        assert agrees((stats, backward(pull)), case)


@pytest.mark.parametrize("case", [pytest.param(CASES[1], marks=pytest.mark.slow), CASES[3]], ids=str)
def test_reads_stay_in_bounds_and_do_not_race(monkeypatch, capfd, case):
    with interpreter(monkeypatch, checked=True):
        assert agrees(values_and_gradients(case, "tpu"), case)
    printed = "".join(capfd.readouterr())
    assert "RACE" not in printed  # some versions of the interpreter only print it


def test_cores_that_share_a_sum_race(capfd):
    def add(x, total):
        total[...] = total[...] + x[...]

    block = pl.BlockSpec((8, 128), lambda i: (0, 0))
    parallel = pltpu.CompilerParams(dimension_semantics=("parallel",))
    x = np.ones((8, 128), np.float32)
    run = pl.pallas_call(add, grid=(4,), in_specs=[block], out_specs=block, out_shape=x, interpret=STRICT,
                         compiler_params=parallel)  # fmt: skip
    said = ""
    try:
        jax.block_until_ready(run(x))
    except jax.errors.JaxRuntimeError as error:  # older versions of jax print it instead
        said = str(error)
    finally:
        pltpu.reset_tpu_interpret_mode_state()
    assert "RACE" in said + "".join(capfd.readouterr())


@pytest.mark.parametrize("wanted", [pytest.param((0,), marks=pytest.mark.slow), (1,), (2,)])  # the shard below is (0,)
def test_gradients_of_some_of_the_outputs(monkeypatch, wanted):
    with interpreter(monkeypatch, checked=False):
        assert agrees(values_and_gradients(CASES[2], "tpu", wanted), CASES[2], wanted)


def test_one_shard_of_a_vocabulary_and_a_dtype_for_the_sum(monkeypatch):
    """The passes with targets ELSEWHERE, a traced size (100, then 0), and a slope whose `log_pi` and `pi` are None."""
    rng = np.random.default_rng(0)
    hidden, unembedding = (rng.normal(size=(rows, 24)).astype(jnp.bfloat16) for rows in (140, 150))
    targets = np.int32(rng.integers(ABSENT, 100, 140))
    targets[3:90:3] = ELSEWHERE
    present = targets != ABSENT
    known = [np.float32(x) for x in (*rng.normal(size=(2, 140)), 8 + rng.random(140), rng.random(140))]
    top, log_total = known[2], known[3]
    slope = Slope(top, log_total, known[0], known[1], None, None)

    @quickly
    def run(size):
        head = Head(unembedding, None, jnp.float32(0.7), None, size)

        def both(passes, tile):
            sums = passes.sums(hidden, head, targets, tile)
            return [x[present] for x in sums], passes.gradients(hidden, head, targets, slope, tile, jnp.float32)[:2]

        return both(tpu, Tile(*TILE)), both(chunked, None)

    with interpreter(monkeypatch, checked=False):
        found, right = run(np.int32(100))
        assert found[1][0].dtype == jnp.float32
        value, gradient = map(error, found, right)
        assert value < 1e-5
        assert gradient < 2**-7
        ((top, *sums), gradients), _ = run(np.int32(0))
        np.testing.assert_array_equal(np.concatenate(sums), 0)
        np.testing.assert_array_equal(top, no_columns(targets, jnp.float32).top[present])
        assert not any(np.any(x) for x in gradients)


def test_tiles_with_nothing_to_learn_are_not_visited():
    head = Head(np.zeros((300, 8), np.float32), None, np.float32(1), None, np.int32(140))
    targets = np.full(700, ABSENT, np.int32)
    targets[[130, 131, 500]] = 7
    found = quickly(lambda head, targets: generations.visits(head, targets, 128))(head, targets)
    plan = jax.tree.map(np.asarray, found)
    assert plan.present.tolist() == [0, 2, 0, 1, 0, 0]
    assert plan.held.tolist() == [0, 1, 1, 3, 3, 3]
    assert [bool(plan.computes(i, first)) for i, first in ((0, 0), (1, 0), (1, 128), (1, 256))] == [0, 1, 1, 0]
    assert quickly(lambda plan: [plan.columns(j, 128) for j in range(3)])(found) == [0, 1, 1]


def test_skipped_rows_are_cleared_if_their_logits_may_not_be_finite():
    nan, inf = np.nan, np.inf
    hidden = np.float32([[1, -1], [nan, 0], [inf, 0], [3e38, -3e38], [3e38, 0], [2, 3]])
    targets = np.int32([ABSENT] * 4 + [0, 0])  # the last two rows have targets, so they count
    one, four = quickly(lambda *x: [backward_weight._spoilt(*x, tokens) for tokens in (1, 4)])(hidden, targets)
    assert one.tolist() == [0, 1, 1, 1, 0, 0]
    assert four.tolist() == [1, 1]  # the second tile extends past the end


def test_a_tile_fits_its_memory():
    generation = generations.ANY
    tiles = []
    for d in (640, 4096, 8192):
        hidden, weight = (jax.ShapeDtypeStruct((2**16, d), jnp.float32) for _ in range(2))
        head = Head(weight, None, jnp.float32(1), None, 2**16)
        bytes_of = partial(backward_weight._bytes, d, hidden, head)
        tiles += [generations.fitted(None, generation.weight, "vocabulary", hidden, head, bytes_of, generation.vmem)]
        assert bytes_of(tiles[-1]) <= generation.vmem
    assert tiles == [(512, 512), (256, 256), (256, 128)]


def test_a_dtype_that_a_tpu_has_no_products_of():
    x = np.zeros((2, 4), np.float16)
    with pytest.raises(TypeError, match="have common dtype float16: expected bfloat16 or float32"):
        token_stats(x, x, np.zeros(2, np.int32), implementation="tpu")


def unmasked(head, columns):
    return False


def one_tile_less(size, tile):
    return max(1, -(-size // tile) - 1)


def not_rescaled(absorbed):
    def mutant(old, z, local, beta):
        new = absorbed(old._replace(rest=0 * old.rest, squares=0 * old.rest, moment=0 * old.rest), z, local, beta)
        return new._replace(rest=new.rest + old.rest, squares=new.squares + old.squares, moment=new.moment + old.moment)

    return mutant


class DropsATile:
    """Replaces `pl` in a kernel's module; `cdiv` is one less, so the grid misses a tile."""

    cdiv = staticmethod(one_tile_less)

    def __getattr__(self, name):
        return getattr(pl, name)


MUTANTS = {
    "a tile of columns dropped": ("values", forward_pass, "pl", DropsATile()),
    "a tile of columns dropped from ∂h": ("∂h", backward_hidden, "pl", DropsATile()),
    "a tile of columns dropped from ∂W": ("∂W", backward_weight, "pl", DropsATile()),
    "no tail's mask": ("values", forward_pass, "is_ragged", unmasked),
    "no rescaling": ("values", forward_pass, "_absorbed", not_rescaled(forward_pass._absorbed)),
    "no joining of eight": ("values", forward_pass, "rescaled", lambda sums, top: sums._replace(top=top)),
    "NaN of the weight's end": ("∂h", backward_hidden, "zero_unless", lambda keep, block: None),
    "NaN of a token left out": ("∂W", backward_weight, "zero_unless", lambda keep, block: None),
    "padding has a gradient": ("∂W", backward_weight, "is_ragged", unmasked),
    "a part's slope is another's": (
        "∂h",
        backward_tile,
        "slope_at",
        lambda slope, x, is_target: slope.constant + 0 * x,
    ),
}


def no_hidden_gradient(hidden, *others):
    return jnp.zeros_like(hidden)


def no_weight_gradient(hidden, head, *others):
    return jax.tree.map(jnp.zeros_like, (head.unembedding, head.bias))


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant(monkeypatch, name):
    spoilt, module, attribute, mutant = MUTANTS[name]
    case = CASES[1] if "padding" in name else CASES[0]
    with interpreter(monkeypatch, checked=False):
        pull = None if spoilt == "values" else forward(case)[1]
        monkeypatch.setattr(module, attribute, mutant)
        if spoilt == "values":
            loss, inputs = loss_of(case, "tpu")
            found, right = quickly(lambda *inputs: loss(*inputs)[1])(*inputs), expected(case)[0]
        elif spoilt == "∂h":
            monkeypatch.setattr(tpu, "weight_gradient", no_weight_gradient)
            found, right = backward(pull)[:1], expected(case)[1][:1]
        else:
            monkeypatch.setattr(tpu, "hidden_gradient", no_hidden_gradient)
            found, right = backward(pull)[1:], expected(case)[1][1:]
    assert error(found, right) > 1e-2
