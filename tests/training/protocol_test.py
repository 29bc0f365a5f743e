"""A second model, in plain JAX, satisfies the `Model` protocol and trains through both stages."""

import dataclasses

import numpy as np
import pytest

from rljax import algorithms
from rljax.models import Model
from tests.models.bigram import BigramConfig
from tests.training.in_process import train
from tests.training.subprocesses import metrics
from tests.training.tiny import config as tiny

pytestmark = [pytest.mark.standard_promotion, pytest.mark.filterwarnings("ignore:Sharding info not provided")]


@pytest.mark.parametrize("algorithm", [algorithms.dapo(), algorithms.ppo()], ids=["policy", "critic"])
def test_a_model_of_plain_jax_trains(algorithm, tmp_path, data):
    config = dataclasses.replace(
        tiny, run=tmp_path / "run", task=dataclasses.replace(tiny.task, data_dir=data), model=BigramConfig(), steps=2,
        algorithm=algorithm, checkpoint_every=0,
    )  # fmt: skip
    stage = train(config)
    assert set(stage.state.params) - {"value", "value_bias"} == {"embedding", "unembedding"}
    losses = [row["loss"] for row in metrics(config.run, "likelihood")]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.05
    assert all(row["grad_norm"] > 1e-3 for row in metrics(config.run, "rl"))
    assert max(row["kl"] for row in metrics(config.run, "rl")) < 1e-2  # sampler and trainer agree on log π


def test_built_models_have_all_members_of_the_protocol():
    needed = {name for name in vars(Model) if not name.startswith("_")}
    built = BigramConfig().build(vocab_size=7, value_head=True, rules=tiny.sharding)
    transformer = tiny.model.build(vocab_size=7, value_head=True, rules=tiny.sharding)
    for model in (built, transformer):
        assert needed <= set(dir(model))
        assert hash(model) == hash(dataclasses.replace(model))
