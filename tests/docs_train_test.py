"""The pages of docs/train: their samples run on a small model folder, and their commands have the options shown."""

import importlib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rljax.models
import rljax.rollout
from rljax.models import TransformerConfig
from rljax.text import load_tokenizer
from rljax.training import recipe
from rljax.training.components import make_components
from tests.docs_test import shown
from tests.pages import blocks
from tests.training.pretrained import make_folder
from tools.imports import ROOT

PAGE = ROOT / "docs/train/models.md"
SMALL = TransformerConfig(vocab_size=300, max_length=256, width=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp=24)
COMMAND = re.compile(r"^python launch/tpu_train\.py my_chat\.py(.*)$", flags=re.M)


def loaded(path: Path, options: Sequence[str] = ()) -> Any:
    return recipe.load(path, options)


def block(mark: str) -> str:
    (found,) = [text for text in blocks(PAGE) if mark in text]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the samples name."""
    folder = tmp_path_factory.mktemp("page")
    for i, name in enumerate(("smollm2", "another")):
        (folder / "models").mkdir(exist_ok=True)
        make_folder(folder / "models" / name, SMALL, seed=i)
    (line,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    (folder / "my_chat.jsonl").write_text("".join(line.replace("3 + 4", f"{i} + 4") for i in range(40)))
    (folder / "my_chat.py").write_text(block("# my_chat.py"))
    return folder


def test_the_recipe_reads_the_model_and_the_problems(folder, monkeypatch):
    monkeypatch.chdir(folder)
    first, second = (loaded(folder / "my_chat.py", text.split()) for text in COMMAND.findall(PAGE.read_text()))
    assert (first.model.folder.name, second.model.folder.name) == ("smollm2", "another")
    parts = make_components(first)
    assert parts.prompts["tokens"].shape == (36, first.rollout.prompt_length)
    assert parts.model.max_length == 256
    assert not any(found.count for found in parts.left_out.values())
    reward = parts.data.reward
    answers = [("3 + 4 = 7", True), ("7, not 8", True), ("7", False), ("seven", True)]
    assert [reward("", text, "7", finished=finished) for text, finished in answers] == [1, 0, 0, 0]


def test_the_options_named_on_the_page_exist(folder, monkeypatch):
    monkeypatch.chdir(folder)
    config = loaded(folder / "my_chat.py", ["--rollout.no-leave-out-long", "--model.ignore", "KEY"])
    assert (config.rollout.leave_out_long, config.model.ignore) == (False, ("KEY",))


def test_the_code_of_your_own_scores_a_chat_and_saves_the_model(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    exec(block("load_tokenizer"), names)
    T, logp = names["tokens"].shape[-1], names["stats"].logp
    assert names["hidden"].shape == (1, T, SMALL.width)
    assert names["unembedding"].shape == (SMALL.vocab_size, SMALL.width)
    every = jax.nn.log_softmax(names["hidden"][0, :-1] @ names["unembedding"].T)
    expected = jnp.take_along_axis(every, names["tokens"][0, 1:, None], axis=-1)[:, 0]
    np.testing.assert_allclose(logp[0, 1:], expected, atol=1e-5)
    _, params = rljax.models.load("exported", dtype="bfloat16")
    assert params["embedding"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params["embedding"], names["params"]["embedding"].astype(jnp.bfloat16))
    assert load_tokenizer("exported").digest == names["tokenizer"].digest


def test_the_samples_of_recipes_and_tasks_are_valid():
    names = {"optax": optax}
    for code in blocks(ROOT / "docs/train/index.md"):
        exec(code, names)
    assert names["task"].untrained == ("count_bits",)
    assert names["reward"]("", "7", "7", finished=True, length=3) == (1.0, -0.003)
    assert isinstance(names["optimizer"], optax.GradientTransformation)


TRAINER_PAGES = {name: importlib.import_module(f"rljax.{name}") for name in ("models", "rollout", "tasks", "text")}
TRAINER_REFERENCE = "\n".join((ROOT / f"docs/reference/{name}.md").read_text() for name in TRAINER_PAGES)


@pytest.mark.parametrize("name", TRAINER_PAGES)
def test_every_public_name_is_documented_and_in_the_reference(name):
    module, known = TRAINER_PAGES[name], shown(TRAINER_REFERENCE)
    values = {symbol: getattr(module, symbol) for symbol in module.__all__}
    assert [symbol for symbol, value in values.items() if id(value) not in known] == []
    assert [symbol for symbol, value in values.items() if inspect.isfunction(value) and not inspect.getdoc(value)] == []


def test_a_page_of_the_trainer_that_is_missing_is_noticed():
    fewer = shown(TRAINER_REFERENCE.replace("::: rljax.rollout.generate\n", ""))
    assert id(rljax.rollout.generate) not in fewer


SMOLLM2 = (ROOT / "docs/train/smollm2.md").read_text(encoding="utf-8")


def test_the_page_of_smollm2_shows_the_settings_of_its_recipe():
    config = loaded(ROOT / "configs/smollm2.py")
    rollout, stage1, task = config.rollout, config.likelihood, config.task
    text = " ".join(SMOLLM2.split())
    assert f"{stage1.steps} optimizer steps of {stage1.rows} packed rows of {stage1.row_length} tokens" in text
    assert f"on {task.demonstrations} worked answers" in text
    assert f"{config.steps} rollouts of {rollout.prompts} prompts × {rollout.completions} completions" in text
    sampling = rollout.sampling
    assert f"at most {sampling.max_new_tokens} tokens at temperature {sampling.temperature:g}" in text
    assert f"at most {rollout.train_groups} groups" in text
    rates = (f"{optimizer.learning_rate:g}".replace("e-0", "e-") for optimizer in (stage1.optimizer, config.optimizer))
    for rate, mark in zip(rates, ("at learning rate {}, on", "AdamW at {} with"), strict=True):
        assert mark.format(rate) in text
    assert f"{task.problems} are held out" in text
    assert f"at most {config.model.max_length} tokens" in text
    for name in (*dict(task.categories), *task.untrained):
        assert f"`{name}`" in text


@pytest.mark.parametrize("command", re.findall(r"^python launch/tpu_train\.py (.*)$", SMOLLM2, flags=re.M))
def test_the_commands_of_the_page_of_smollm2_have_recipes_and_options(command):
    file, *options = command.split()
    config = loaded(ROOT / file, options)
    assert config.seed == config.task.seed
    assert (config.reward_map is None) == ("control" not in command)
