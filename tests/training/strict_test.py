import dataclasses

import jax
import pytest

from rljax import algorithms
from rljax.models import TransformerConfig
from rljax.rollout import SamplingConfig
from tests.training.in_process import train
from tests.training.subprocesses import metrics
from tests.training.tiny import config as tiny

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


def short(folder, data, **more):
    likelihood = dataclasses.replace(tiny.likelihood, steps=2, rows=2)
    sampling = SamplingConfig(max_new_tokens=3, top_k=5, top_p=0.9)
    rollout = dataclasses.replace(tiny.rollout, prompts=2, completions=4, sampling=sampling)
    task = dataclasses.replace(tiny.task, data_dir=data)
    evaluation = dataclasses.replace(tiny.evaluation, kl_start=True)
    return dataclasses.replace(tiny, run=folder, task=task, likelihood=likelihood, rollout=rollout, steps=1,
                               evaluation=evaluation, **more)  # fmt: skip


@pytest.mark.parametrize("more", [
    {},
    {"algorithm": algorithms.ppo(), "model": dataclasses.replace(tiny.model, dtype="bfloat16")},
], ids=["dapo", "ppo in bfloat16"])  # fmt: skip
def test_dtypes_are_written_out(tmp_path, data, more):
    assert jax.numpy_dtype_promotion.value == "strict"
    stage = train(short(tmp_path, data, **more))
    assert metrics(tmp_path, "rl")[0]["optimizer_steps"] >= 1
    assert stage.look() == {"kl_start": 0.0}  # before the only update, so π = π_start


@pytest.mark.slow
def test_without_jit(tmp_path, data):
    model = TransformerConfig(width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp=8, max_length=64)
    with jax.disable_jit():
        train(short(tmp_path, data, model=model))
    row = metrics(tmp_path, "rl")[0]
    assert row["optimizer_steps"] >= 1
    assert row["mismatch"] < 1e-5  # the sampler's log π also excludes banned tokens
