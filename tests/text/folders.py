"""Small Hugging Face folders with a tokenizer, written by the tests themselves."""

import functools
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CONTROL = ("<|end|>", "<|start|>", "<|stop|>", "<s>")
TEXTS = ["What is 1 + 2? The answer is 3.", "system user assistant model", "naïve façade, 東京 </s>"] * 5

CHATML = (  # as SmolLM2
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|start|>system\nBe helpful<|end|>\n' }}{% endif %}"
    "{{'<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
THINKING = """{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- if loop.index0 == ns.last %}
            {%- set content = '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content %}
        {%- endif %}
    {%- endif %}
    {{- '<|start|>' + message.role + '\\n' + content }}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool>' + call.function | tojson + '</tool>' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n' }}
{%- endif %}
"""  # as Qwen3
TRIMMED = """{{- bos_token }}
{%- if not date is defined %}
    {%- set date = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- endif %}
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|stop|>\\n\\n'+ message['content'] | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|stop|>\\n\\n' }}
{%- endif %}
"""  # as Llama 3
TURNS = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}
{% endif %}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{ '<|start|>' + role + '\n' }}
{%- generation %}{% if message['content'] is string %}{{ message['content'] | trim }}
{%- else %}{% for part in message['content'] %}{{ part['text'] | trim }}{% endfor %}{% endif %}{% endgeneration %}
{{ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<|start|>model\n'}}{% endif %}"""  # as Gemma


def byte_level(vocab_size: int = 400) -> Tokenizer:
    """A new byte-level BPE tokenizer with control tokens in its vocabulary, and `<think>` as an ordinary token."""
    return Tokenizer.from_str(_trained(vocab_size))


@functools.cache
def _trained(vocab_size: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(CONTROL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return tokenizer.to_str()


def write(folder: Path, tokenizer: Tokenizer | None = None, **files: object) -> Path:
    """Writes tokenizer.json, tokenizer_config.json with eos `<|end|>`, and `files` (None leaves one out)."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text((tokenizer or byte_level()).to_str())
    settings = {"eos_token": "<|end|>", "bos_token": {"content": "<s>", "special": True}, "pad_token": "<|stop|>"}
    contents: dict[str, object] = {"tokenizer_config": settings, **files}
    for name, x in contents.items():
        if x is not None:
            (folder / f"{name}.json").write_text(json.dumps(x))
    return folder


def with_template(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template)
    return folder
