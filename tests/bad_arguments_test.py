"""Arguments that every public function must reject at trace time, by name; the lists come from the modules."""

import dataclasses
import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from rljax import distillation, ratio
from tests.signatures_test import ARGUMENTS, BATCH, COMBINATORS, FUNCTIONS, OTHERWISE

FREE = ("k1", "k2", "k3", "overlong_penalty", "permute_within_group", "solvable")
NO_TOKENS = ("batch", "key", "support", "ids", "teacher_ids", "student_ids", "hidden", "unembedding", "history")
REFUSED = {
    "low": -0.1, "high": -0.1, "dual": -0.1, "cap": -0.1, "limit": -0.1, "slack": -0.1, "least": -0.1, "gamma": 1.5,
    "lam": -0.1, "share": 1.5, "alpha": -0.1, "max_length": 0.0, "buffer": 0.0, "slope": -1.0, "positive": 0.0,
    "negative": -1.0, "log_low": -0.1, "log_high": -0.1, "log_dual": -0.1, "k_positive": -1.0, "k_negative": -1.0,
    "lam_positive": -1.0, "lam_negative": -1.0,
}  # fmt: skip
ONE_MINUS = ("clip", "two_sided_clip")  # the bound is 1 − low
FUNCTIONS = {
    name: f
    for name, f in FUNCTIONS.items()
    if name.startswith("rljax") and name.split(".")[-1] not in COMBINATORS
    and not name.startswith(("rljax.logprobs", "rljax.schedule"))  # tested in their own files
}  # fmt: skip


def arguments(function, **replaced) -> dict:
    required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    return {name: ARGUMENTS[name] for name in required} | OTHERWISE.get(function, {}) | replaced


def cases(wanted, least):
    """Parametrizes a test over the `wanted` (function, parameter) pairs; asserts that there are at least `least`."""
    found = [(f, p) for f in FUNCTIONS.values() for p in inspect.signature(f).parameters if wanted(f, p)]
    assert len(found) >= least
    return pytest.mark.parametrize(("function", "name"), found, ids=[f"{f.__name__} {p}" for f, p in found])


def has_a_shape(function, name):
    return hasattr(arguments(function).get(name), "shape") and name not in NO_TOKENS and function.__name__ not in FREE


@cases(has_a_shape, 100)
def test_another_shape_is_refused_by_name(function, name):
    given = arguments(function)
    x = given[name]
    wrong = (x[:-1], x[..., None], x[..., 0]) if x.ndim else (x[None],)
    for y in wrong:
        with pytest.raises(ValueError, match=rf"\b({'|'.join(given)})('s [a-z ]+)? has shape .*: expected [\[(]"):
            function(**given | {name: y})


@cases(lambda f, p: p in ("mask", "segments"), 50)
def test_a_float_mask_is_refused(function, name):
    given = arguments(function)
    with pytest.raises(TypeError, match=rf"{name} ha(s|ve) dtype float32: expected"):
        function(**given | {name: given[name].astype(jnp.float32)})


@cases(lambda f, p: p == "batch", 8)
@pytest.mark.parametrize("field", ["mask", "old_logp", "advantages", "weights", "ref_logp", "segment_ids"])
def test_batch_fields_are_checked_if_they_are_read(function, name, field):
    def of(**fields):
        return function(**arguments(function, batch=dataclasses.replace(BATCH, **fields)))

    if field == "mask":
        with pytest.raises(TypeError, match="mask has dtype float32: expected bool"):
            of(mask=BATCH.mask.astype(jnp.float32))
    good = BATCH.mask.astype(jnp.int32) if field == "segment_ids" else getattr(BATCH, field)
    reads = []
    spy = type("Spy", (), {f.name: getattr(BATCH, f.name) for f in dataclasses.fields(BATCH)})
    setattr(spy, field, property(lambda self: reads.append(field) or good))
    jax.eval_shape(lambda: function(**arguments(function, batch=spy())))
    if reads:
        with pytest.raises(ValueError, match=r"has shape \(.*\): expected \("):
            of(**{field: good[..., :-1]})


@cases(lambda f, p: p in REFUSED, 35)
def test_a_bound_out_of_range_is_refused_and_a_traced_one_is_not_checked(function, name):
    for value in (REFUSED[name], float("nan"), *([1.0] if name == "low" and function.__name__ in ONE_MINUS else [])):
        with pytest.raises(ValueError, match=rf"{name} = {re.escape(str(value))}: expected a number in \["):
            function(**arguments(function, **{name: value}))
    jax.eval_shape(lambda value: function(**arguments(function, **{name: value})), jnp.float32(REFUSED[name]))


def test_low_of_none_means_no_lower_bound():
    f = partial(ratio.two_sided_clip, *(ARGUMENTS[name] for name in ("log_ratio", "advantages", "segments")), high=0.2)
    assert (f(low=None) == f()).all()
    assert (f(low=None) != f(low=0.1)).any()


def test_hidden_states_and_ids_that_do_not_fit():
    hidden, unembedding, ids = ARGUMENTS["hidden"], ARGUMENTS["unembedding"], ARGUMENTS["ids"]
    wider = r"unembedding has shape \(6,\): expected \(7,\), as hidden's last axis"
    with pytest.raises(ValueError, match=r"unembedding has shape \(11, 6\).*D = 7, as in hidden"):
        distillation.top_tokens(hidden, unembedding[:, :-1], k=2)
    with pytest.raises(ValueError, match=wider):
        distillation.logits_at(hidden, unembedding[:, :-1], ids)
    with pytest.raises(ValueError, match=r"hidden has shape \(3, 7\)|hidden has shape \(3,\): expected \(4,\)"):
        distillation.logits_at(hidden[:-1], unembedding, ids)
    with pytest.raises(ValueError, match=r"ids has shape \(4,\): expected \[N, K\]"):
        distillation.logits_at(hidden, unembedding, ids[:, 0])
    for combine in (distillation.intersection, distillation.union):
        with pytest.raises(ValueError, match=r"student_ids has shape \(3,\): expected \(4,\), as teacher_ids' leading"):
            combine(ids, ids[:-1])
