"""Tests that the errors of float32 and bfloat16 inputs against float64 stay within the table of docs/accuracy.md."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Batch, advantage, aggregation, correction, distillation, penalty, policy_loss, ratio
from rljax.objective import bind, required_fields, terms
from tests import papers
from tests.examples import bound
from tests.laws_test import COMBINATORS

T = 4096
DOCS = Path(__file__).resolve().parents[1] / "docs" / "accuracy.md"
RATIOS = {name: bound(ratio, name) for name in ratio.__all__ if name not in COMBINATORS}
ADVANTAGES = {name: bound(advantage, name) for name in advantage.__all__ if name not in COMBINATORS}
ADVANTAGES = {name: f for name, f in ADVANTAGES.items() if not name.startswith("without")}
AGGREGATIONS = {name: bound(aggregation, name) for name in aggregation.__all__ if name != "side"}
NOT_OF_THE_MISMATCH = ("batch_normalized", "report", "opsm", "weighted", "aggregation_of_kept", "advantage_of_kept")
CORRECTIONS = [name for name in correction.__all__ if name not in NOT_OF_THE_MISMATCH]
EXACT = ("Support", "intersection", "ordinary", "students", "teachers", "union")  # no arithmetic
PENALTIES = {
    **{f"kl, {e.__name__}": partial(penalty.kl, estimator=e) for e in (penalty.k1, penalty.k2, penalty.k3)},
    "kl_corrected": penalty.kl_corrected,
    "quadratic": penalty.quadratic,
    "entropy_bonus": penalty.entropy_bonus,
    "value_loss": lambda v, batch: penalty.value_loss(v, batch, returns=batch.ref_logp, old_values=v + 0.1, limit=0.2),
}


def inputs():
    rng = np.random.default_rng(0)
    l, A, w, mask = papers.random_batch(0, (4, T), scale=0.05)
    old, ref = rng.normal(size=l.shape) - 3, rng.normal(size=l.shape) - 3
    batch = Batch(mask=mask, old_logp=old, advantages=A, weights=w / mask.sum(), ref_logp=ref,
                  divergence=rng.uniform(0, 1e-2, l.shape))  # fmt: skip
    step = papers.random_mask(rng, (4, 5, T))
    rewards = rng.normal(size=step.shape[:2])
    return old + l, batch, rewards, step, papers.random_fields(0, rewards, step), rollout(rng, step), heads(rng)


def rollout(rng, mask):
    """log π of the trained and of the sampling policy; the mismatch differs between sequences."""
    sampled = rng.normal(size=mask.shape) - 3
    mismatch = 0.02 * rng.choice([0.1, 1.0, 10.0], (*mask.shape[:-1], 1)) * rng.normal(size=mask.shape)
    mismatch[0, :2, T // 2] = -12.0  # a token for `veto`
    return sampled + mismatch, sampled


def heads(rng, n=64, d=64, v=1000):
    """Hidden states and unembeddings of a student and a teacher (logits with a spread of 3 nats), and token ids."""
    unembedding = rng.normal(size=(v, d))
    hidden = 3 / np.sqrt(d) * rng.normal(size=(n, d))
    teacher = hidden + 0.3 * np.std(hidden) * rng.normal(size=(n, d)), unembedding
    ids = np.argsort(-teacher[0] @ unembedding.T, axis=1)[:, :8].astype(np.int32)
    return (hidden, unembedding), teacher, ids


@jax.jit
def outputs(logp, batch, rewards, mask, fields, rollout, heads):
    """The value of each function (e^f, A, w, …) by name, and its gradient or None."""
    out = corrections(*rollout, mask) | distillations(*heads)
    for name, f in RATIOS.items():
        found = terms(logp, batch)
        values = bind(f, batch)(found.log_ratio, batch.advantages, found.segments)
        out[f"ratio.{name}"] = jnp.where(batch.mask, jnp.exp(values), 0), jax.grad(policy_loss)(logp, batch, f)
    for name, f in ADVANTAGES.items():
        out[f"advantage.{name}"] = f(rewards, mask, **{field: fields[field] for field in required_fields(f)}), None
    for name, f in AGGREGATIONS.items():
        out[f"aggregation.{name}"] = f(mask, jnp.sign(rewards)), None
    for name, f in PENALTIES.items():
        out[f"penalty.{name}"] = jax.value_and_grad(f)(logp, batch)
    return out


def corrections(logp, sampled, mask):
    found = {name: getattr(correction, name)(logp - sampled, mask) for name in CORRECTIONS}
    found["batch_normalized"] = correction.batch_normalized(found["token_truncated"], mask)
    report = correction.report(logp - sampled, mask, found["token_truncated"], found["k3"])
    found |= {f"report, {name}": value for name, value in report.items()}
    return {f"correction.{name}": (value, None) for name, value in found.items()}


def distillations(student, teacher, ids):
    hidden, unembedding = student
    support, goal = distillation.teachers(ids), distillation.logits_at(*teacher, ids)
    weights = jnp.full(len(ids), 1 / len(ids), hidden.dtype)

    def logits_at(hidden):
        return distillation.logits_at(hidden, unembedding, ids)

    def support_kl(hidden):
        return distillation.support_kl(logits_at(hidden), goal, support)

    def support_loss(hidden):
        return distillation.support_loss(logits_at(hidden), goal, weights, support=support)

    def with_gradient(f):
        value, pull = jax.vjp(f, hidden)
        return value, pull(jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape))[0]

    found = {f"distillation.{f.__name__}": with_gradient(f) for f in (logits_at, support_kl, support_loss)}
    found["distillation.top_tokens"] = distillation.top_tokens(*teacher, k=8)[1], None
    log_pi, log_q = logits_at(hidden), goal
    weighted = distillation.importance_weighted(log_pi, log_q, ids >= 0)
    found["distillation.importance_weighted"] = weighted, None
    found["distillation.sampled_token"] = distillation.sampled_token(log_pi, log_q, ids >= 0), None
    return found


def error(actual, exact) -> float:
    """The largest difference divided by the largest answer; for booleans, the share that differs."""
    if exact.dtype == bool:
        return float(np.mean(actual != exact))
    actual, exact = np.asarray(actual, np.float64), np.asarray(exact, np.float64)
    return float(np.max(np.abs(actual - exact)) / np.max(np.abs(exact)))


def measure() -> dict[str, list[float]]:
    """By name: errors in value and gradient of float32 inputs, and the error in value of inputs rounded to bfloat16.

    bfloat16 inputs are summed in float32 (a law of laws_test), so the rounded inputs are passed as float32.
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


def stated(heading: str) -> dict[str, list[float]]:
    """The rows of the table under a heading of the docs; an empty cell is 0."""
    page = DOCS.read_text().split(f"\n{heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(.*)` \|(.*)\|$", page, re.MULTILINE)
    return {name: [float(x.strip() or 0) for x in row.split("|")] for name, row in rows}


def allowed(limit: float) -> float:
    """The limit plus 50 % and at least two units in the last place, for another device's order of summation."""
    return max(1.5 * limit, 2.4e-7)


@pytest.fixture(scope="module")
def measured():
    return measure()


def test_the_docs_state_all_that_is_measured(measured):
    assert set(stated("## The table")) == set(measured)


NAMES = [
    *(f"ratio.{name}" for name in RATIOS), *(f"advantage.{name}" for name in ADVANTAGES),
    *(f"aggregation.{name}" for name in AGGREGATIONS), *(f"penalty.{name}" for name in PENALTIES),
    *(f"correction.{name}" for name in (*CORRECTIONS, "batch_normalized")),
    *(f"correction.report, {name}" for name in ("chi_squared", "effective_samples", "kl", "rejected")),
    *(f"distillation.{name}" for name in distillation.__all__ if name not in EXACT),
]  # fmt: skip


def test_no_function_escapes(measured):
    assert set(NAMES) == set(measured)


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_within_those_stated(name, measured):
    for found, limit in zip(measured[name], stated("## The table")[name], strict=True):
        assert found <= allowed(limit)
    assert measured[name][2] >= measured[name][0] / 4  # rounding the inputs has an effect
