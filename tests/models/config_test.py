import dataclasses

import jax
import pytest
import tyro

from rljax.models import Decoder, TransformerConfig
from rljax.models.layers import gelu_tanh
from rljax.models.rope import LinearScaling
from rljax.training.description import describe


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vocab_size", -1, "vocab_size = -1: expected 0 or more tokens"),
        ("width", 0, "width = 0: expected 1 or more"),
        ("layers", 0, "layers = 0"),
        ("heads", 0, "heads = 0"),
        ("kv_heads", 3, "kv_heads = 3: expected a divisor of heads = 4"),
        ("head_dim", 5, "head_dim = 5: expected an even number"),
        ("mlp", -2, "mlp = -2"),
        ("max_length", 0, "max_length = 0"),
        ("rope_base", 0.0, "rope_base = 0.0: expected a positive number"),
        ("norm_eps", float("nan"), "norm_eps = nan"),
        ("dtype", "float16", "dtype = 'float16': expected one of float32, bfloat16, float64"),
        ("param_dtype", "int8", "param_dtype = 'int8': expected one of float32, bfloat16, float64"),
        ("softcap", 0.0, "softcap = 0.0: expected None or a positive number"),
        ("attention_softcap", -1.0, "attention_softcap = -1.0: expected None or a positive number"),
        ("query_scale", 0.0, "query_scale = 0.0: expected None or a positive number"),
        ("embedding_scale", 0.0, "embedding_scale = 0.0: expected a positive number"),
        ("norm_shift", float("inf"), "norm_shift = inf: expected a finite number"),
        ("activation", "silu", "activation = 'silu': expected a function"),
        ("rope_scaling", 8.0, "rope_scaling = 8.0: expected None or a function"),
        ("local_rope_base", -1.0, "local_rope_base = -1.0: expected a positive number"),
        ("local_layers", (True,), r"local_layers = \(True,\): expected \(\) or a tuple of layers = 3 booleans"),
        ("local_layers", [False] * 3, "local_layers = .*: expected"),
        ("local_layers", (True,) * 3, "window = 0: expected 1 or more tokens"),
        ("window", 5, "window = 5: expected 0, because local_layers has no local layer"),
        ("experts", -1, "experts = -1: expected 0 or more"),
        ("experts_per_token", 2, "experts_per_token = 2: expected 0, because experts = 0"),
        ("expert_mlp", 2, "expert_mlp = 2: expected 0, because experts = 0"),
        ("dense_layers", (0,), r"dense_layers = \(0,\): expected \(\), because experts = 0"),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(field, value, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts_per_token": 0}, "experts_per_token = 0: expected 1 to experts = 4"),
        ({"experts_per_token": 5}, "experts_per_token = 5: expected 1 to experts = 4"),
        ({"expert_mlp": 0}, "expert_mlp = 0: expected 1 or more"),
        ({"dense_layers": (3,)}, r"dense_layers = \(3,\): expected a tuple of indices below layers = 3"),
    ],
)
def test_experts_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{"experts": 4, "experts_per_token": 2, "expert_mlp": 8, **change})


def test_the_vocabulary_is_padded_whatever_the_mesh():
    assert [TransformerConfig(vocab_size=v).padded_vocab for v in (1, 128, 129, 151_936)] == [128, 128, 256, 151_936]


def test_a_model_needs_a_vocabulary():
    with pytest.raises(ValueError, match="vocab_size = 0: expected 1 or more"):
        Decoder(TransformerConfig())


def test_functions_in_a_config_are_described_and_hashed():
    scaled = [TransformerConfig(activation=gelu_tanh, rope_scaling=LinearScaling(factor)) for factor in (2.0, 2.0, 3.0)]
    assert scaled[0] == scaled[1] != scaled[2]
    assert hash(scaled[0]) == hash(scaled[1])
    described = describe(scaled[0])
    assert described["activation"] == "gelu_tanh"
    assert described["rope_scaling"] == {"type": "LinearScaling", "factor": 2.0}
    assert describe(TransformerConfig())["activation"] == "silu"


@pytest.mark.parametrize("activation", [gelu_tanh, jax.nn.silu, jax.nn.relu])
def test_a_config_with_functions_has_command_line_options(activation):
    default = TransformerConfig(activation=activation, rope_scaling=LinearScaling(2.0))
    options = ["--local-layers", "True", "False", "True", "--window", "5", "--softcap", "3"]
    found = tyro.cli(TransformerConfig, args=options, default=default)
    assert found == dataclasses.replace(default, local_layers=(True, False, True), window=5, softcap=3.0)


def test_models_of_equal_configs_are_equal_and_hash_alike():
    a, b = Decoder(TransformerConfig(vocab_size=9)), Decoder(TransformerConfig(vocab_size=9))
    assert (a, hash(a)) == (b, hash(b))
    assert a != Decoder(dataclasses.replace(a.config, tied=True))
