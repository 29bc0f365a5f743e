"""Errors of the kernels against float64, with float32 and bfloat16 inputs: within those stated in docs/accuracy.md."""

import re
from functools import cache, partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from pallas_kernels import segmented_cummin, segmented_cumsum, token_kl, token_stats, token_topk
from pallas_kernels._vocabulary.types import Tile
from pallas_kernels.segmented_cumsum import chunked as scan_chunked
from pallas_kernels.token_kl import chunked as kl_chunked
from pallas_kernels.token_stats import chunked
from tests.accuracy_test import allowed, error, stated
from tests.kernels.heads import enable_x64
from tests.kernels.segmented_cumsum_accuracy_test import IDS, UNCOMPENSATED, T, X

N, D, V, K = 64, 64, 1000, 8
TILES = {"reference": None, "chunked": Tile(24, 300), "tpu": Tile(128, 128)}
HEADS = [("token_stats", "chunked"), ("token_stats", "tpu"), ("token_kl", "chunked"), ("token_topk", "chunked")]
SCANS = {"segmented_cumsum": (segmented_cumsum, np.add), "segmented_cummin": (segmented_cummin, np.minimum)}
ROWS = [*HEADS, *((name, form) for name in SCANS for form in ("chunked", "tpu"))]


def example():
    """([h, W, h and W of a nearby reference], targets), one target absent.

    Logits have a standard deviation of 3 nats. Two rows are nearly certain, with π(y) = 1 − 4e-5 and 1 − 5e-6.
    """
    rng = np.random.default_rng(0)
    targets = rng.integers(0, V, N)
    W, h = rng.normal(size=(V, D)), 3 / np.sqrt(D) * rng.normal(size=(N, D))
    h[:2] = np.array([[20.0], [30.0]]) / D * W[targets[:2]]
    targets[2] = -1
    near = [x + 0.05 * np.std(x) * rng.normal(size=x.shape) for x in (h, W)]
    return [x.astype(np.float32) for x in (h, W, *near)], targets.astype(np.int32)


ARRAYS, TARGETS = example()


def outputs(kernel, form, h, W, *other):
    if kernel == "token_kl":
        tiled = partial(kl_chunked.token_kl, tile=TILES[form])
        run = partial(token_kl, implementation=form) if form == "reference" else tiled
        return {"token_kl": run(h, W, *other, TARGETS >= 0)}
    options = {"tile": TILES[form], "implementation": form}
    if kernel == "token_topk":
        return {"token_topk.logp": token_topk(h, W, TARGETS, k=K, **options)[1].logp}
    stats = token_stats(h, W, TARGETS, **options)
    return {f"token_stats.{name}": value for name, value in stats._asdict().items()}


def interpreted(f):
    """The function compiled without optimization, with TPU kernels in Pallas' interpreter."""
    run = jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})

    def interpreting(*arrays):
        with mock.patch.object(pl, "pallas_call", partial(pl.pallas_call, interpret=True)):
            return jax.device_get(run(*arrays))

    return interpreting


def with_gradients(kernel, form, *inputs):
    """For each input, {output: [value, ∂h, ∂W]}, with the gradients of a loss that weights every row differently."""

    @interpreted
    def run(of, h, W, *other):
        """All outputs, and the gradients of those selected by `of`; one compilation serves every output."""
        values, pull = jax.vjp(lambda h, W: outputs(kernel, form, h, W, *other), h, W)
        weights = {name: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) for name, x in values.items()}
        return values, pull({name: jnp.where(of[name], x, 0) for name, x in weights.items()})

    names = list(jax.eval_shape(partial(outputs, kernel, form), *inputs[0]))
    chosen = {one: {name: np.array(name == one) for name in names} for one in names}

    def all_of(arrays):
        found = {name: run(chosen[name], *arrays) for name in names}
        return {name: [values[name], *slopes] for name, (values, slopes) in found.items()}

    return [all_of(arrays) for arrays in inputs]


def rounded(*arrays):
    return [x.astype(jnp.bfloat16) for x in arrays]


@cache
def truth(kernel):
    """The results in float64, for the float32 inputs and for the inputs rounded to bfloat16."""
    with enable_x64():
        wide = ([x.astype(np.float64) for x in arrays] for arrays in (ARRAYS, rounded(*ARRAYS)))
        return with_gradients(kernel, "reference", *wide)


def own_errors(kernel: str, form: str, coarse: bool) -> dict[str, list[float]]:
    (found,), exact = with_gradients(kernel, form, rounded(*ARRAYS) if coarse else ARRAYS), truth(kernel)[coarse]
    return {
        f"{name}, {form}": [error(x, y) if np.any(y) else 0.0 for x, y in zip(found[name], exact[name], strict=True)]
        for name in exact
    }


def of_head(kernel: str, form: str) -> dict[str, list[float]]:
    """Per output: the errors for float32, the errors for bfloat16, and the error of rounding the inputs to bfloat16."""
    high, low = (own_errors(kernel, form, coarse) for coarse in (False, True))
    exact, coarse = truth(kernel)
    rounding = [error(coarse[name][0], exact[name][0]) for name in exact]
    return {name: [*high[name], *low[name], loss] for name, loss in zip(high, rounding, strict=True)}


def of_scan(name: str, form: str) -> dict[str, list[float]]:
    """The errors of a scan over T tokens, of sums relative to the running Σ|x|; 0 for gradients, which are scans too.

    Inputs rounded to bfloat16 are passed as float32, since they are summed in float32.
    """
    scan, operation = SCANS[name]

    def exact(x):
        y = operation.accumulate(x, axis=-1, dtype=np.float64)
        y[3, T // 2 :] = operation.accumulate(x[3, T // 2 :], dtype=np.float64)
        return y

    run, coarse = interpreted(partial(scan, implementation=form)), rounded(X)[0].astype(X.dtype)
    size = exact(np.abs(X)) if operation is np.add else np.max(np.abs(X))
    pairs = (run(X, IDS), exact(X)), (run(coarse, IDS), exact(coarse)), (exact(coarse), exact(X))
    high, low, rounding = (float(np.max(np.abs(np.float64(y) - z) / size)) for y, z in pairs)
    return {f"{name}, {form}": [high, 0.0, 0.0, low, 0.0, 0.0, rounding]}


def measure(kernel: str, form: str) -> dict[str, list[float]]:
    return of_scan(kernel, form) if kernel in SCANS else of_head(kernel, form)


def beyond(found: dict[str, list[float]]) -> list[str]:
    """The outputs whose errors exceed twice the allowed ones, or are 0 (no gradient) where the docs state an error.

    The factor of two is for versions of XLA that sum matrix products in another order.
    """
    limits = stated("## The kernels")
    return [
        name
        for name, errors in found.items()
        if any(e > 2 * allowed(limit) or (e > 0) != (limit > 0) for e, limit in zip(errors, limits[name], strict=False))
    ]


@pytest.mark.parametrize(("kernel", "form"), ROWS)
def test_errors_are_within_those_stated(kernel, form):
    assert beyond(measure(kernel, form)) == []


def test_the_docs_state_all_that_is_measured():
    assert {re.sub(r"\.\w+", "", name) for name in stated("## The kernels")} == {", ".join(row) for row in ROWS}


def in_bfloat16(f):
    """f with results rounded to bfloat16; XLA may remove a pair of casts, but not `reduce_precision`."""
    return lambda *inputs: jax.tree.map(lambda x: jax.lax.reduce_precision(x, 8, 7), f(*inputs))


def uncompensated(operation, *inputs):
    return SCAN(UNCOMPENSATED, *inputs)


SCAN = scan_chunked.segmented_scan
MUTANTS = {
    "sums": ("token_stats", "chunked", chunked, "absorb", in_bfloat16(chunked.absorb)),
    "slopes": ("token_stats", "chunked", chunked, "slope_at", in_bfloat16(chunked.slope_at)),
    "divergences": ("token_kl", "chunked", kl_chunked, "_absorb", in_bfloat16(kl_chunked._absorb)),
    "a plain sum": ("segmented_cumsum", "chunked", scan_chunked, "segmented_scan", uncompensated),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_with_fewer_digits_exceeds_the_limits(monkeypatch, name):
    kernel, form, module, attribute, mutant = MUTANTS[name]
    monkeypatch.setattr(module, attribute, mutant)
    kl_chunked._tiled.cache_clear()
    found = of_scan(kernel, form) if kernel in SCANS else own_errors(kernel, form, coarse=False)
    kl_chunked._tiled.cache_clear()
    assert len(beyond(found)) == len(found)
