import dataclasses
import json
import math
from pathlib import Path

import jax
import pytest

from rljax.models import TransformerConfig
from rljax.models.huggingface.architecture import describe
from rljax.models.huggingface.config import read_config, transformer
from rljax.models.layers import gelu_tanh
from rljax.models.rope import LinearScaling, Llama3Scaling
from tests.models.huggingface.folders import FAMILIES, config
from tests.models.small import CONFIG

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
PLAIN = TransformerConfig(
    vocab_size=37, max_length=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=6, mlp=20, rope_base=10_000.0,
    norm_eps=1e-5,
)  # fmt: skip


def with_options(**options):
    return dataclasses.replace(PLAIN, **options)


GEMMA3 = with_options(
    tied=True, qk_norm=True, norm_shift=1.0, post_norm=True, activation=gelu_tanh, embedding_scale=4.0,
    query_scale=1 / 3, rope_base=1e6, local_layers=(True, False), window=5,
)  # fmt: skip
EXPECTED = {
    "llama": with_options(rope_base=500.0),
    "mistral": PLAIN,
    "qwen2": with_options(qkv_bias=True),
    "qwen3": with_options(qk_norm=True, tied=True),
    "qwen3_moe": with_options(
        qk_norm=True, experts=3, experts_per_token=2, expert_mlp=12, dense_layers=(0,), renormalize_experts=False
    ),
    "gemma3_text": GEMMA3,
    "gemma3": GEMMA3,
}


@pytest.mark.parametrize("family", EXPECTED)
def test_each_family_gives_its_options(family):
    assert transformer(config(family)) == EXPECTED[family]


@pytest.mark.parametrize(("old", "new"), [
    ({"rope_theta": 7.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}),
    ({"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
     {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}}),
    ({"rope_theta": 7.0, "rope_scaling": {"rope_type": "llama3"} | LLAMA3},
     {"rope_parameters": {"rope_type": "llama3", "rope_theta": 7.0} | LLAMA3}),
    ({"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}),
])  # fmt: skip
def test_old_and_new_keys_are_equal(old, new):
    values = config("qwen3")
    assert transformer(values | old) == transformer(values | new)
    assert "rope_theta" not in old or transformer(values | old).rope_base == 7.0


def test_scalings_of_rotary_frequencies():
    linear = transformer(config("llama", rope_scaling={"type": "linear", "factor": 4}))
    assert linear.rope_scaling == LinearScaling(4.0)
    assert transformer(config("llama", rope_scaling={"rope_type": "llama3"} | LLAMA3)).rope_scaling == Llama3Scaling(
        8.0, 1.0, 4.0, 16
    )


def test_both_names_of_the_number_of_experts():
    values = config("qwen3_moe")
    assert transformer({**values, "num_local_experts": values.pop("num_experts")}).experts == 3
    with pytest.raises(ValueError, match="num_local_experts = 4: expected num_experts = 3"):
        transformer(config("qwen3_moe", num_local_experts=4))


def test_sparse_layers_by_step():
    assert transformer(config("qwen3_moe", mlp_only_layers=[], decoder_sparse_step=2)).dense_layers == (0,)


def test_gemma3_in_old_and_new_keys():
    old = config("gemma3_text", rope_theta=99.0, rope_local_base_freq=9.0, rope_scaling={"type": "linear", "factor": 8})
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 99.0}
    new = config("gemma3_text", rope_parameters={"full_attention": full, "sliding_attention": {"rope_theta": 9.0}})
    assert transformer(old) == transformer(new)
    assert (transformer(new).rope_base, transformer(new).local_rope_base) == (99.0, 9.0)
    assert transformer(new).rope_scaling == LinearScaling(8.0)


@pytest.mark.parametrize("key", ["sliding_window_pattern", "_sliding_window_pattern"])
def test_a_pattern_of_local_layers_need_not_divide_the_depth(key):
    values = config("gemma3_text", num_hidden_layers=7, **{key: 3})
    del values["layer_types"]
    assert transformer(values).local_layers == (True, True, False, True, True, False, True)


def test_gemma3_without_local_layers_has_no_window():
    assert transformer(config("gemma3_text", layer_types=["full_attention"] * 2)).window == 0


def test_soft_caps_of_gemma3():
    with pytest.warns(UserWarning, match="attn_logit_softcapping = 50.0 has no effect"):
        capped = transformer(config("gemma3_text", final_logit_softcapping=30.0, attn_logit_softcapping=50.0))
    assert (capped.softcap, capped.attention_softcap) == (30.0, None)


@pytest.mark.parametrize(("family", "key", "expected"), [
    ("llama", "tie_word_embeddings", {"tied": False}),
    ("gemma3_text", "tie_word_embeddings", {"tied": True}),
    ("llama", "rms_norm_eps", {"norm_eps": 1e-6}),
    ("llama", "rope_theta", {"rope_base": 10_000.0}),
    ("gemma3_text", "rope_theta", {"rope_base": 1_000_000.0}),
    ("llama", "head_dim", {"head_dim": 4}),
    ("qwen2", "head_dim", {"head_dim": 4}),
    ("qwen3", "head_dim", {"head_dim": 128}),
    ("gemma3_text", "head_dim", {"head_dim": 256}),
    ("llama", "num_key_value_heads", {"kv_heads": 4}),
    ("llama", "max_position_embeddings", {"max_length": 2048}),
    ("qwen3_moe", "norm_topk_prob", {"renormalize_experts": False}),
    ("gemma3_text", "query_pre_attn_scalar", {"query_scale": 1 / 16}),
    ("gemma3_text", "sliding_window", {"window": 4096}),
])  # fmt: skip
def test_an_absent_key_has_the_default_of_its_class(family, key, expected):
    values = config(family)
    values.pop(key, None)
    found = transformer(values)
    assert {option: getattr(found, option) for option in expected} == expected


def test_null_key_value_heads_are_one_per_query_head():
    assert transformer(config("mistral", num_key_value_heads=None)).kv_heads == 4


def test_other_activations():
    assert transformer(config("llama", hidden_act="gelu_pytorch_tanh")).activation is gelu_tanh
    assert transformer(config("llama")).activation is jax.nn.silu


WINDOW = "windows are supported in Gemma 3 only"


@pytest.mark.parametrize(("family", "changes", "message"), [
    ("llama", {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "architectures = .'GPT2LMHeadModel'."),
    ("llama", {"architectures": None, "model_type": "phi3"}, "model_type = 'phi3': expected one of LlamaForCausalLM"),
    ("llama", {"model_type": "mistral"}, "model_type = 'mistral': expected 'llama'"),
    ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config = .*expected weights"),
    ("mistral", {"sliding_window": 16}, f"sliding_window = 16: expected null, or at least .* = 32; {WINDOW}"),
    ("qwen2", {"use_sliding_window": True}, f"use_sliding_window = True: expected false, since {WINDOW}"),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, f"layer_types = .*{WINDOW}"),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type = 'yarn': expected default, linear"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type = 'dynamic'"),
    ("llama", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0}}, "rope_type = 'longrope'"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "factor = 0: expected a positive number"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1.0}}, "rope_scaling: unknown key 'mscale'"),
    ("llama", {"rope_scaling": {"factor": 2.0}, "rope_parameters": {"rope_theta": 1.0}}, "rope_scaling = .* null"),
    ("llama", {"attention_bias": True}, "attention_bias = True: expected false"),
    ("llama", {"mlp_bias": True}, "mlp_bias = True: expected false"),
    ("llama", {"hidden_act": "relu"}, "hidden_act = 'relu': expected one of silu"),
    ("llama", {"attention_dropout": 0.1}, "unknown key 'attention_dropout' = 0.1: .*--model.ignore attention_dropout"),
    ("llama", {"logit_scale": 2.0}, "unknown key 'logit_scale' = 2.0: .*`--model.ignore logit_scale`"),
    ("llama", {"hidden_size": "16"}, "hidden_size = '16': expected an integer"),
    ("llama", {"num_key_value_heads": "2"}, "num_key_value_heads = '2': expected an integer"),
    ("llama", {"architectures": [["x"]]}, "architectures = .*: expected one of"),
    ("mistral", {"sliding_window": "no"}, "sliding_window = 'no': expected an integer"),
    ("qwen3", {"layer_types": 3}, "layer_types = 3: expected"),
    ("qwen3_moe", {"mlp_only_layers": [{}]}, "mlp_only_layers = "),
    ("llama", {"vocab_size": 0}, "vocab_size = 0: expected an integer of 1 or more"),
    ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes': expected true or false"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000: expected at most 256"),
    ("qwen3_moe", {"num_experts": 10**9}, "num_experts = 1000000000: expected at most 1024"),
    ("gemma3", {"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers = 1000000000: expected at most"),
    ("llama", {"rope_theta": 10**400}, "rope_theta = 10+…: expected a positive number"),
    ("llama", {"pruned_heads": {"0": [1]}}, "unknown key 'pruned_heads'"),
    ("llama", {"rms_norm_eps": -1.0}, "rms_norm_eps = -1.0: expected a positive number"),
    ("llama", {"num_key_value_heads": 3}, "kv_heads = 3: expected a divisor of heads"),
    ("qwen3_moe", {"num_experts_per_tok": 9}, "experts_per_token = 9"),
    ("qwen3_moe", {"mlp_only_layers": [5]}, "mlp_only_layers = .5.: expected indices below"),
    ("gemma3_text", {"layer_types": ["full_attention"]}, "layer_types = .* for each of num_hidden_layers = 2"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 5.0}}, "unknown key 'rope_theta'"),
    ("gemma3", {"audio_config": {"layers": 1}}, "unknown key 'audio_config'"),
    ("gemma3", {"text_config": {"model_type": "gemma2"}}, "text_config: model_type = 'gemma2'"),
    ("gemma3", {"text_config": {"logit_scale": 2.0}}, "text_config: unknown key 'logit_scale'"),
    ("gemma3", {"text_config": 5}, "text_config = 5: expected an object"),
])  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(family, changes, message):
    with pytest.raises(ValueError, match=message):
        transformer(config(family, **changes))


def test_long_values_are_cut_in_errors():
    with pytest.raises(ValueError, match=r"layer_types = .*…: expected") as caught:
        transformer(config("qwen3", layer_types=["sliding_attention"] * 1000))
    assert len(str(caught.value)) < 400


def test_inactive_windows_pass():
    assert transformer(config("mistral", sliding_window=32)) == EXPECTED["mistral"]
    assert transformer(config("qwen2", use_sliding_window=False, sliding_window=4, max_window_layers=1,
                              layer_types=["full_attention"] * 2)) == EXPECTED["qwen2"]  # fmt: skip


def test_unknown_keys_pass_if_null_false_or_ignored():
    values = config("llama", one=None, two=False, three=0)
    with pytest.raises(ValueError, match="unknown key 'three' = 0"):
        transformer(values)
    assert transformer(values, ignore=("three",)) == EXPECTED["llama"]


def test_harmless_keys_pass():
    extra = {"auto_map": {"AutoModel": "code.Model"}, "use_cache": True, "bos_token_id": 1, "eos_token_id": [2, 3],
             "initializer_range": 0.02, "transformers_version": "4.1", "pretraining_tp": 1, "attention_dropout": 0.0,
             "transformers.js_config": {"dtype": "q4"}}  # fmt: skip
    assert transformer(config("llama", **extra)) == EXPECTED["llama"]


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3"])
def test_describe_writes_what_is_read(family):
    found = transformer(config(family))
    assert transformer(json.loads(json.dumps(describe(found)))) == found


def test_describe_chooses_the_architecture_of_models_trained_here():
    for changes, name in [({}, "LlamaForCausalLM"), ({"qk_norm": True}, "Qwen3ForCausalLM"),
                          ({"width": 18}, "MistralForCausalLM"), ({"value_head": True}, "LlamaForCausalLM"),
                          ({"remat": True, "dtype": "bfloat16"}, "LlamaForCausalLM")]:  # fmt: skip
        values = describe(dataclasses.replace(CONFIG, **changes))
        assert values["architectures"] == [name]
        assert (values["rope_theta"], values["max_position_embeddings"]) == (50.0, 24)
        assert values["eos_token_id"] is None


@pytest.mark.parametrize(("changes", "message"), [
    ({"softcap": 3.0}, "softcap = 3.0: expected None, since the nearest .* LlamaForCausalLM"),
    ({"qk_norm": True, "qkv_bias": True}, "qkv_bias = True: expected False"),
    ({"query_scale": 1.0}, "query_scale = 1.0"),
    ({"activation": math.tanh}, "activation = "),
    ({"rope_scaling": math.tanh}, "rope_scaling = "),
    ({"experts": 2, "experts_per_token": 1, "expert_mlp": 4}, "qk_norm = False: expected True"),
    ({"post_norm": True}, "expected .*Gemma3ForCausalLM"),
    ({"window": 4, "local_layers": (True, False)}, "window = 4|local_layers"),
])  # fmt: skip
def test_describe_names_an_option_without_an_architecture(changes, message):
    with pytest.raises(ValueError, match=message):
        describe(dataclasses.replace(CONFIG, **changes))


@pytest.mark.parametrize(("text", "message"), [
    ("{", "config.json: expected JSON"), ("[1]", "expected a JSON object, found list"),
    ("[" * 100_000, "config.json: expected JSON"), ("\xff", "config.json: expected JSON"),
])  # fmt: skip
def test_a_config_that_is_not_json(text, message, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


def test_no_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        read_config(Path(tmp_path))
