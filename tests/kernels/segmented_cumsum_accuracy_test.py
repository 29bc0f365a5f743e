"""Sums of 131072 float32 terms are within 1e-6 of Σ|x| in every implementation; uncompensated sums are not."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.segmented_cumsum import chunked, tpu
from pallas_kernels.segmented_cumsum._monoids import SUM

T, BOUND = 131072, 1e-6
ROWS = ("normal", "uniform", "constant", "late")


def example():
    """(x, ids) with one row per kind; the second sequence of the last row starts halfway, after large values."""
    rng = np.random.default_rng(0)
    ids = np.ones((4, T), np.int32)
    ids[3, T // 2 :] = 2
    x = np.stack([rng.normal(size=T), rng.random(T), np.full(T, 0.1), rng.random(T)]).astype(np.float32)
    x[3, : T // 2] *= 1e6
    return x, ids


X, IDS = example()


def exact(x, reverse):
    if reverse:
        return exact(x[:, ::-1], False)[:, ::-1]
    y = np.cumsum(x, axis=-1, dtype=np.float64)
    y[3, T // 2 :] = np.cumsum(x[3, T // 2 :], dtype=np.float64)
    return y


def in_tiles(operation, x, ids, reverse, exclusive):
    with mock.patch.object(tpu.pl, "pallas_call", partial(tpu.pl.pallas_call, interpret=True)):
        return tpu.segmented_scan(operation, x, ids, reverse, exclusive)


def by(form):
    return lambda operation, x, ids, reverse, exclusive: form(operation, reverse, exclusive, x, ids)


SCANS = {"a loop": by(chunked.in_one_loop), "chunks": by(chunked.in_chunks), "tpu": in_tiles}


def errors(scan, operation, reverse):
    """max_t |y_t − exact_t| / Σ_{s ≤ t} |x_s|, by kind of row."""
    y = np.asarray(jax.jit(partial(scan, operation), static_argnums=(2, 3))(X, IDS, reverse, False), np.float64)
    relative = np.max(np.abs(y - exact(X, reverse)) / exact(np.abs(X), reverse), axis=-1)
    return dict(zip(ROWS, relative, strict=True))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
def test_a_sum_keeps_its_digits(scan, reverse):
    assert max(errors(scan, SUM, reverse).values()) <= BOUND


def test_the_kernels_carry_keeps_them(monkeypatch):
    monkeypatch.setattr(tpu, "TOKENS", 128)
    assert max(errors(in_tiles, SUM, False).values()) <= BOUND / 4


UNCOMPENSATED = SUM._replace(absorb=lambda total, error, x: (total + x, error))


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
def test_a_plain_carry_does_not(scan, monkeypatch):
    """A plain carry loses accuracy even in chunks. This also shows that XLA does not optimize the compensation away."""
    monkeypatch.setattr(tpu, "TOKENS", 128)
    assert errors(scan, UNCOMPENSATED, False)["constant"] > BOUND


def test_a_difference_of_sums_does_not():
    def of_the_row(operation, x, ids, reverse, exclusive):
        y = chunked.in_one_loop(operation, reverse, exclusive, x, jnp.ones_like(ids))
        return jnp.where(ids == 2, y - y[:, T // 2 - 1 : T // 2], y)

    assert errors(of_the_row, SUM, False)["late"] > 1e-2
