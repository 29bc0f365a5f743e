"""How far float32 and bfloat16 inputs are from float64: no further than docs/accuracy.md says, function by function."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Batch, advantage, aggregation, penalty, policy_loss, ratio
from rljax.objective import bind, log_ratios, required_fields, segments_of
from tests import papers
from tests.laws_test import COMBINATORS, bound

T = 4096
DOCS = Path(__file__).resolve().parents[1] / "docs" / "accuracy.md"
RATIOS = {name: bound(ratio, name) for name in ratio.__all__ if name not in COMBINATORS}
ADVANTAGES = {name: bound(advantage, name) for name in advantage.__all__ if name not in COMBINATORS}
ADVANTAGES = {name: f for name, f in ADVANTAGES.items() if not name.startswith("without")}
AGGREGATIONS = {name: bound(aggregation, name) for name in aggregation.__all__}
PENALTIES = {
    **{f"kl, {e.__name__}": partial(penalty.kl, estimator=e) for e in (penalty.k1, penalty.k2, penalty.k3)},
    "quadratic": penalty.quadratic,
    "entropy_bonus": penalty.entropy_bonus,
    "value_loss": lambda v, batch: penalty.value_loss(v, batch, returns=batch.ref_logp, old_values=v + 0.1, limit=0.2),
}


def inputs():
    """Rows of T tokens near the policy that sampled, and rollouts of two groups, at float64."""
    rng = np.random.default_rng(0)
    l, A, w, mask = papers.random_batch(0, (4, T), scale=0.05)
    old, ref = rng.normal(size=l.shape) - 3, rng.normal(size=l.shape) - 3
    batch = Batch(mask=mask, old_logp=old, advantages=A, weights=w / mask.sum(), ref_logp=ref,
                  divergence=rng.uniform(0, 1e-2, l.shape))  # fmt: skip
    step = papers.random_mask(rng, (4, 5, T))
    rewards = rng.normal(size=step.shape[:2])
    return old + l, batch, rewards, step, papers.random_fields(0, rewards, step)


@jax.jit
def outputs(logp, batch, rewards, mask, fields):
    """By name: e^f, A, w or a penalty's value, and the gradient where there is one."""
    out = {}
    for name, f in RATIOS.items():
        values = bind(f, batch)(log_ratios(logp, batch), batch.advantages, segments_of(batch))
        out[f"ratio.{name}"] = jnp.where(batch.mask, jnp.exp(values), 0), jax.grad(policy_loss)(logp, batch, f)
    for name, f in ADVANTAGES.items():
        out[f"advantage.{name}"] = f(rewards, mask, **{field: fields[field] for field in required_fields(f)}), None
    for name, f in AGGREGATIONS.items():
        out[f"aggregation.{name}"] = f(mask, jnp.sign(rewards)), None
    for name, f in PENALTIES.items():
        out[f"penalty.{name}"] = jax.value_and_grad(f)(logp, batch)
    return out


def error(actual, exact) -> float:
    """The greatest difference, over the greatest answer."""
    actual, exact = np.asarray(actual, np.float64), np.asarray(exact, np.float64)
    return float(np.max(np.abs(actual - exact)) / np.max(np.abs(exact)))


def measure() -> dict[str, list[float]]:
    """By name: float32 inputs' error in value and gradient, then the error in value of inputs rounded to bfloat16.

    bfloat16 inputs are summed as float32 (a law of laws_test), so they are given as float32 once they are rounded.
    """
    cast = lambda dtype, x: x if x.dtype in (bool, np.int32) else x.astype(dtype)  # noqa: E731
    whole = jax.tree.map(np.asarray, inputs())
    single = jax.tree.map(partial(cast, np.float32), whole)
    rounded = jax.tree.map(partial(cast, np.float32), jax.tree.map(partial(cast, jnp.bfloat16), whole))
    with jax.enable_x64(True):
        exact = jax.device_get(outputs(*whole))
    low, coarse = outputs(*single), outputs(*rounded)
    found = {}
    for name, (value, gradient) in exact.items():
        slope = [] if gradient is None else [error(low[name][1], gradient)]
        found[name] = [error(low[name][0], value), *(slope or [0.0]), error(coarse[name][0], value)]
    return found


def stated() -> dict[str, list[float]]:
    """The table of the docs."""
    rows = re.findall(r"^\| `(.*)` \| (\S+) \| (\S*) \| (\S+) \|$", DOCS.read_text(), re.MULTILINE)
    return {name: [float(x or 0) for x in row] for name, *row in rows}


@pytest.fixture(scope="module")
def measured():
    return measure()


def test_the_docs_state_all_that_is_measured(measured):
    assert set(stated()) == set(measured)


@pytest.mark.parametrize("name", [f"{kind}.{name}" for kind, functions in (
    ("ratio", RATIOS), ("advantage", ADVANTAGES), ("aggregation", AGGREGATIONS), ("penalty", PENALTIES)
) for name in functions])  # fmt: skip
def test_errors_are_within_those_stated(name, measured):
    """Half as much again, and two units in the last place, are allowed to another device's order of summation."""
    for found, limit in zip(measured[name], stated()[name], strict=True):
        assert found <= max(1.5 * limit, 2.4e-7)
    assert measured[name][2] >= measured[name][0] / 4  # and rounding the inputs is noticed, where they are read
