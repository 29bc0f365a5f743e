import importlib.util
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import segmented_cumsum
from rljax import Batch

# Under Bazel this file is a symbolic link into the checkout.
SPEC = importlib.util.spec_from_file_location(
    "objectives", Path(__file__).resolve().parents[1] / "benchmarks" / "objectives.py"
)
assert SPEC
assert SPEC.loader
objectives = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(objectives)
SHAPE = (64, 1024)
RATIOS = objectives.ratios()
CLIPS = [name for name, ratio in RATIOS.items() if isinstance(ratio, partial) and ratio.func is RATIOS["grpo"].func]


def peak(ratio):
    of = partial(jax.ShapeDtypeStruct, SHAPE)
    numbers = ("old_logp", "advantages", "weights", "ref_logp", "divergence")
    batch = Batch(mask=of(jnp.bool_), tokens=of(jnp.int32), **{name: of(jnp.float32) for name in numbers})
    return objectives.peak_arrays(objectives.compiled_loss(ratio, of(jnp.float32), batch), SHAPE)


@pytest.mark.parametrize("name", [name for name in RATIOS if name not in CLIPS or name == "dapo"])
def test_a_loss_and_its_gradient_need_at_most_eight_arrays(name):
    assert 1 < peak(RATIOS[name]) <= 8


def test_a_sum_over_all_pairs_of_tokens_does_not_pass():
    assert peak(lambda l, A, segments: segmented_cumsum(l, segments, implementation="reference")) > 8


def test_the_comparison_runs(monkeypatch, capsys):
    monkeypatch.setattr(objectives, "ratios", lambda: {name: RATIOS[name] for name in ("grpo", "ctpo")})
    assert set(objectives.compare_losses(4, 64, turns=1)) == {"grpo", "ctpo", *objectives.SCANS}
    assert len(objectives.compare_advantages(3, 4, 64, turns=1)) == 3
    printed = capsys.readouterr().out
    assert printed.count("floor") == 5
    assert "clip and two scans, peak" in printed


def test_numpys_baselines_are_the_worked_ones():
    """R = (1, 0) and equal energies: B = ½ at the first token; at the second, one completion is left, and B = 0."""
    mask = np.array([[[True, True], [True, False]]])
    rewards, proxy = np.array([[1.0, 0.0]], np.float32), np.ones((1, 2, 2), np.float32)
    for baselines in (objectives.vectorized, objectives.over_groups):
        np.testing.assert_allclose(baselines(rewards, mask, proxy), [[[0.5, 1], [-0.5, 0]]], atol=1e-6)
