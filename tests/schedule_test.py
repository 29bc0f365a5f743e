import jax
import numpy as np
import pytest

from rljax import algorithms, schedule

SHAPES = {  # name: (shape, value at s = ¼)
    "linear": (schedule.linear, 0.25),
    "cosine": (schedule.cosine, (1 - np.sqrt(0.5)) / 2),
    "cubic": (schedule.cubic, 3 / 16 - 2 / 64),
    "power 2": (schedule.power(2), 1 / 16),
    "power ½": (schedule.power(0.5), 0.5),
}


def test_every_shape_is_here():
    assert {name.split()[0] for name in SHAPES} == set(schedule.__all__) - {"anneal"}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_leads_from_start_to_end(name):
    shape, quarter = SHAPES[name]
    at = jax.jit(lambda step: schedule.anneal(step, start=1.0, end=-1.0, steps=8, shape=shape))
    np.testing.assert_allclose([at(step) for step in (0, 2, 8, 100)], [1, 1 - 2 * quarter, -1, -1], atol=1e-6)
    path = np.array([at(step) for step in range(9)])
    assert np.all(np.diff(path) < 0)


def test_holders_schedule_takes_a_shape():
    p = [float(algorithms.holder_schedule(step, shape=schedule.cosine)) for step in (0, 125, 250, 500)]
    np.testing.assert_allclose(p, [2, 2 - 4 * SHAPES["cosine"][1], 0, -2], atol=1e-6)


def test_what_is_refused():
    with pytest.raises(ValueError, match="steps = 0"):
        schedule.anneal(0, start=1.0, end=0.0, steps=0)
    with pytest.raises(ValueError, match="n = 0"):
        schedule.power(0)
