"""`start_from` reads parameters instead of making them; only a value head is made."""

import dataclasses

import jax
import numpy as np
import pytest

from rljax import algorithms
from rljax.models import initialize, make_mesh
from rljax.models.protocol import initialize_value_head
from rljax.training import MeshConfig, ShardingRules
from tests.models.bigram import BigramConfig
from tests.models.small import CONFIG
from tests.training.in_process import train
from tests.training.tiny import config as tiny

pytestmark = [pytest.mark.standard_promotion, pytest.mark.filterwarnings("ignore:Sharding info not provided")]


@dataclasses.dataclass(frozen=True)
class NeverMade(BigramConfig):
    def parameters(self, model, mesh, key):
        raise AssertionError("parameters were made")


def test_replaced_parameters_are_not_made(tmp_path, data):
    config = dataclasses.replace(tiny, run=tmp_path / "first", task=dataclasses.replace(tiny.task, data_dir=data),
                                 model=BigramConfig(), steps=0, checkpoint_every=0)  # fmt: skip
    first = train(config).state.params
    then = dataclasses.replace(config, run=tmp_path / "then", start_from=tmp_path / "first", model=NeverMade(),
                               algorithm=algorithms.ppo())  # fmt: skip
    params = train(then).state.params
    assert set(params) == {*first, "value", "value_bias"}
    for name, x in first.items():
        np.testing.assert_array_equal(params[name], x)


def test_a_value_head_is_that_of_all_parameters():
    model = CONFIG.build(vocab_size=30, value_head=True, rules=ShardingRules())
    mesh, key = make_mesh(MeshConfig(fsdp=2, tensor=2)), jax.random.key(3)
    head, whole = initialize_value_head(model, mesh, key), initialize(model, mesh, key)
    assert set(head) == {"value", "value_bias"}
    for name, x in head.items():
        np.testing.assert_array_equal(x, whole[name])
        assert x.sharding == whole[name].sharding
    plain = CONFIG.build(vocab_size=30, value_head=False, rules=ShardingRules())
    assert initialize_value_head(plain, mesh, key) == {}
