"""Recipe of a small run of a pretrained model on a chat task, for tests; `make_folder` writes its model."""

import dataclasses
import json
from pathlib import Path

import jax
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

import rljax.models
from rljax import algorithms
from rljax.models import MeshConfig, PretrainedModel, ShardingRules, TransformerConfig, make_mesh
from rljax.rollout import SamplingConfig
from rljax.tasks import JsonlTask, Problem
from rljax.training import Config, EvaluationConfig, LikelihoodConfig, OptimizerConfig, RolloutConfig
from tests.training.tiny import some_right

CONTROLS = ("<pad>", "<|im_start|>", "<|im_end|>")
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SIZES = TransformerConfig(vocab_size=300, max_length=128, width=32, layers=2, heads=2, kv_heads=2, head_dim=16, mlp=64,
                          rope_base=10000.0, norm_eps=1e-5)  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer of 256 bytes and 3 control tokens with a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROLS))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"pad_token": CONTROLS[0], "eos_token": CONTROLS[2], "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def make_folder(folder: Path, sizes: TransformerConfig = SIZES, seed: int = 0):
    """Writes a model with random parameters, whose table has 41 rows more than the tokenizer has tokens."""
    model = sizes.build(vocab_size=sizes.vocab_size, value_head=False, rules=ShardingRules())
    params = rljax.models.initialize(model, make_mesh(MeshConfig(), jax.devices()[:1]), jax.random.key(seed))
    rljax.models.save(folder, model, params)
    write_tokenizer(folder)
    return params


def write_problems(path: Path) -> None:
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(5) for b in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def as_chat(problem: Problem) -> Problem:
    return dataclasses.replace(problem, messages=({"role": "user", "content": problem.prompt},))


@dataclasses.dataclass(frozen=True)
class ChatTask(JsonlTask):
    """The problems of a file, as chats."""

    def load(self, *, tokenizer=None):
        data = super().load(tokenizer=tokenizer)
        held_out = {level: [*map(as_chat, problems)] for level, problems in data.held_out.items()}
        return dataclasses.replace(data, prompts=[*map(as_chat, data.prompts)], held_out=held_out)


config = Config(
    run=Path("runs/pretrained"),
    task=ChatTask(Path("problems.jsonl"), held_out_share=0.2),
    model=PretrainedModel(Path("model"), max_length=64),
    likelihood=LikelihoodConfig(steps=0),
    algorithm=algorithms.dapo(),
    reward_map=some_right,
    steps=2,
    rollout=RolloutConfig(prompts=4, completions=4, prompt_length=24, sampling=SamplingConfig(max_new_tokens=6)),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    evaluation=EvaluationConfig(every=0, problems=4, samples=1, batch=8),
    checkpoint_every=1,
)
