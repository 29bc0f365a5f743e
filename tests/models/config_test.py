import dataclasses

import pytest

from rljax.models import Decoder, TransformerConfig


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
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(field, value, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{field: value})


def test_the_vocabulary_is_padded_whatever_the_mesh():
    assert [TransformerConfig(vocab_size=v).padded_vocab for v in (1, 128, 129, 151_936)] == [128, 128, 256, 151_936]


def test_a_model_needs_a_vocabulary():
    with pytest.raises(ValueError, match="vocab_size = 0: expected 1 or more"):
        Decoder(TransformerConfig())


def test_models_of_equal_configs_are_equal_and_hash_alike():
    a, b = Decoder(TransformerConfig(vocab_size=9)), Decoder(TransformerConfig(vocab_size=9))
    assert (a, hash(a)) == (b, hash(b))
    assert a != Decoder(dataclasses.replace(a.config, tied=True))
