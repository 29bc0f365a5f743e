"""benchmarks/known_cotangents.py: its one-pass gradients equal token_stats', and cycles are read from a program."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

with pytest.MonkeyPatch.context() as patch:  # under Bazel this file is a symbolic link into the checkout
    patch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    benchmark = importlib.import_module("known_cotangents")


ARGUMENTS = jax.jit(lambda: benchmark.arguments(12, 5, 30, jnp.float32))
BOTH = jax.jit(lambda *inputs: (benchmark.recomputed(*inputs), benchmark.in_one_pass(4)(*inputs)))


@pytest.mark.parametrize("of", [0, 1, 2, None])
def test_one_pass_is_the_other_form(of):
    *inputs, cotangents = jax.tree.map(np.asarray, ARGUMENTS())
    if of is not None:
        cotangents = jax.tree.map(np.zeros_like, cotangents)._replace(**{cotangents._fields[of]: cotangents[of]})
    ours, other = BOTH(*inputs, cotangents)
    for x, y in zip(jax.tree.leaves(other), jax.tree.leaves(ours), strict=True):
        assert np.abs(y).max() > 1e-2
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


PROGRAM = """%body.3 (p: f32[2]) -> f32[2] {
  fusion.1 = f32[2] fusion(p), backend_config={"estimated_cycles":"70"}
  fusion.2 = f32[2] fusion(p), backend_config={"estimated_cycles":"7"}

%condition.4 (p: f32[2]) -> pred[] {

ENTRY %main (p: f32[2]) -> f32[2] {
  copy.1 = f32[2] copy(p), backend_config={"estimated_cycles":"9223372036854775807"}
  fusion.3 = f32[2] fusion(p), backend_config={"estimated_cycles":"5"}
  while.1 = f32[2] while(fusion.3), condition=%condition.4, body=%body.3
"""


def test_cycles_in_the_loop_and_outside_of_it():
    assert benchmark.cycles(PROGRAM) == (5, 77)
    with pytest.raises(ValueError, match="expected a loop"):
        benchmark.cycles(PROGRAM.replace("while(", "fusion("))
