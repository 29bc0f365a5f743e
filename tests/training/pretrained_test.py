"""A pretrained model with its tokenizer: training, resuming, export, and the errors of each."""

import dataclasses
import errno
import json
import shutil

import jax
import numpy as np
import pytest

import rljax.models
from rljax.models import without_value_head
from rljax.rollout import SamplingConfig
from rljax.text import load_tokenizer
from rljax.training import commands
from rljax.training.chat import load_speaker
from rljax.training.checkpoint.folder import identity
from rljax.training.components import make_components
from rljax.training.export import load_run
from rljax.training.run import stage_one_params
from tests.training import pretrained
from tests.training.in_process import call, on_devices, train
from tests.training.subprocesses import ROOT

RECIPE = ROOT / "tests/training/pretrained.py"
pytestmark = [pytest.mark.standard_promotion, pytest.mark.filterwarnings("ignore:Sharding info not provided")]


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(x, y)


def differ(ours, theirs) -> bool:
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.any(np.asarray(x) != np.asarray(y)) for x, y in pairs)


def config_of(place, run="run", model="model", **changes):
    task = dataclasses.replace(pretrained.config.task, path=place / "problems.jsonl", data_dir=place / "data")
    settings = dataclasses.replace(pretrained.config.model, folder=place / model)
    return dataclasses.replace(pretrained.config, run=place / run, task=task, model=settings, **changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, problems, and a run of one rollout in the folder `run`, which is not changed."""
    place = tmp_path_factory.mktemp("pretrained")
    pretrained.make_folder(place / "model")
    pretrained.write_problems(place / "problems.jsonl")
    code, output = call(commands.train, RECIPE, "--run", place / "run", "--steps", "1", cwd=place)
    assert code == 0, output
    return place


@pytest.fixture(scope="module")
def parts(place):
    with on_devices(1):
        return make_components(config_of(place))


def test_a_run_starts_from_the_parameters_of_the_folder(place, parts):
    _, params = rljax.models.load(place / "model")
    assert_equal(stage_one_params(place / "run", parts), params)


def test_chat_prompts_end_where_the_answer_begins(place, parts):
    tokenizer = load_tokenizer(place / "model")
    begin, user = (tokenizer.chat([{"role": "user", "content": "1+2="}], generate=g) for g in (True, False))
    (rows,) = np.nonzero([parts.data.prompts[i].prompt == "1+2=" for i in parts.prompts["index"]])
    tokens = parts.prompts["tokens"][rows[0]]
    assert tokens[-len(begin) :].tolist() == begin
    assert begin[: len(user)] == user
    generation = tokens[-(len(begin) - len(user)) :].tolist()
    assert generation[0] == parts.data.tokenizer.vocab_size - 2  # <|im_start|>
    assert tokenizer.decode(generation) == "assistant\n"


def test_rows_of_the_table_without_a_token_are_banned(parts):
    assert parts.model.vocab_size == 300
    assert parts.banned_ids == (256, *range(259, 300))  # the padding token and 41 rows


def test_a_resumed_run_ends_with_the_same_parameters(place):
    shutil.copytree(place / "run", place / "resumed")
    shutil.rmtree(place / "resumed" / "tokenizer")  # written again
    code, output = call(commands.train, RECIPE, "--run", place / "resumed", "--steps", "2", cwd=place)
    assert (code, "resuming from rl step 1" in output) == (0, True), output
    straight = train(config_of(place, "straight")).state.params
    resumed = load_run(place / "resumed", ("--model.folder", str(place / "model")))
    assert_equal(resumed.params, without_value_head(straight))
    assert differ(resumed.params, load_run(place / "run", ("--model.folder", str(place / "model"))).params)


def test_an_exported_run_is_loaded_again(place):
    code, output = call(commands.export, "run", "--out", "exported/one", cwd=place)
    assert code == 0, output
    assert "vllm serve exported/one" in output
    trained = load_run(place / "run", ("--model.folder", str(place / "model")))
    model, params = rljax.models.load(place / "exported" / "one")
    assert_equal(params, trained.params)
    assert model.config.vocab_size == trained.model.config.vocab_size == 300
    assert load_tokenizer(place / "exported" / "one").digest == trained.tokenizer.digest
    assert [path.name for path in (place / "exported").iterdir()] == ["one"]


@pytest.mark.slow
def test_an_export_in_bfloat16_is_rounded(place):
    code, output = call(commands.export, "run", "--out", "rounded", "--dtype", "bfloat16", cwd=place)
    assert code == 0, output
    _, params = rljax.models.load(place / "rounded", dtype="bfloat16")
    trained = load_run(place / "run", ("--model.folder", str(place / "model")))
    assert_equal(params, jax.tree.map(lambda x: x.astype("bfloat16"), trained.params))
    assert json.loads((place / "rounded" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.slow
def test_the_value_head_is_left_out(place):
    changed = "config = dataclasses.replace(config, algorithm=algorithms.ppo())"
    recipe = place / "critic.py"
    recipe.write_text(f"import dataclasses\nfrom rljax import algorithms\n{RECIPE.read_text()}\n{changed}\n")
    code, output = call(commands.train, recipe, "--run", "critic", "--steps", "1", "--evaluation.samples", 1, cwd=place)
    assert code == 0, output
    trained = load_run(place / "critic", ("--model.folder", str(place / "model")))
    assert not trained.params.keys() & {"value", "value_bias"}
    code, output = call(commands.export, "critic", "--out", "actor", cwd=place)
    assert code == 0, output
    _, params = rljax.models.load(place / "actor")
    assert_equal(params, trained.params)


def test_a_run_on_a_mesh_is_resumed_and_exported(place):
    mesh = ("--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2)
    shutil.copytree(place / "run", place / "meshed")
    code, output = call(commands.train, RECIPE, "--run", "meshed", "--steps", "2", *mesh, cwd=place, devices=8)
    assert code == 0, output
    code, output = call(commands.export, "meshed", "--out", "of a mesh", cwd=place)
    assert code == 0, output
    _, params = rljax.models.load(place / "of a mesh")
    trained = load_run(place / "meshed", ("--model.folder", str(place / "model")))
    assert {x.sharding.mesh.shape["tensor"] for x in jax.tree.leaves(trained.params)} == {2}  # heads
    assert_equal(params, jax.device_get(trained.params))


def test_the_folder_may_move_but_the_model_must_not_change(place, tmp_path):
    described = identity(config_of(place))
    shutil.copytree(place / "model", tmp_path / "moved")
    assert identity(config_of(place, model=tmp_path / "moved")) == described
    pretrained.make_folder(tmp_path / "other", dataclasses.replace(pretrained.SIZES, rope_base=500.0))
    other = identity(config_of(place, model=tmp_path / "other"))
    assert other != described
    shutil.copytree(place / "run", tmp_path / "run")
    code, output = call(commands.train, RECIPE, "--run", tmp_path / "run", "--steps", "2", "--model.folder",
                        tmp_path / "other", cwd=place)  # fmt: skip
    assert code == 1
    assert "belongs to another config (model" in output
    assert "10000.0 -> 500.0" in output


def test_another_tokenizer_is_noticed(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    shutil.copytree(place / "model", tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    changed = {**json.loads(settings.read_text()), "chat_template": "{{ messages[0]['content'] }}"}
    settings.write_text(json.dumps(changed))
    code, output = call(commands.train, RECIPE, "--run", tmp_path / "run", "--steps", "2", "--model.folder",
                        tmp_path / "model", cwd=place)  # fmt: skip
    assert code == 1
    assert "the tokenizer differs" in output


def test_an_unknown_folder_shows_how_to_download_a_model(place):
    code, output = call(commands.train, RECIPE, "--run", "new", "--model.folder", "nowhere", cwd=place)
    assert code == 1
    assert "nowhere" in output
    assert "hf download ORG/NAME --local-dir nowhere" in output
    assert "Traceback" not in output


def test_bad_exports_are_named(place, tmp_path):
    code, output = call(commands.export, "nothing", "--out", tmp_path / "out", cwd=place)
    assert (code, "run = 'nothing' holds no run" in output) == (1, True), output
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    code, output = call(commands.export, "run", "--out", tmp_path / "full", cwd=place)
    assert (code, "expected a folder that does not exist or is empty" in output) == (1, True), output
    shutil.copytree(place / "run", tmp_path / "begun", ignore=shutil.ignore_patterns("[0-9]*"))
    code, output = call(commands.export, tmp_path / "begun", "--out", tmp_path / "out", cwd=place)
    assert (code, "has no checkpoint yet: train the run first" in output) == (1, True), output
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_a_full_disk_leaves_nothing_half_written(place, tmp_path, monkeypatch):
    def fill(folder, *arguments, **keywords):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rljax.models, "save", fill)
    code, output = call(commands.export, "run", "--out", tmp_path / "out", cwd=place)
    assert code == 1
    assert f"disk full while exporting to {tmp_path / 'out'}: nothing was written there" in output
    assert list(tmp_path.iterdir()) == []


def test_a_control_token_without_a_row(place, tmp_path):
    """As the image token of Gemma 3's tokenizer, which its models without images do not know."""
    shutil.copytree(place / "data", tmp_path / "data", dirs_exist_ok=True)
    shutil.copy(place / "problems.jsonl", tmp_path)
    pretrained.make_folder(tmp_path / "model", dataclasses.replace(pretrained.SIZES, vocab_size=259))
    path, template = tmp_path / "model" / "tokenizer.json", tmp_path / "model" / "chat_template.jinja"
    spec = json.loads(path.read_text())
    spec["added_tokens"].append({**spec["added_tokens"][-1], "id": 259, "content": "<image>"})
    path.write_text(json.dumps(spec))
    with on_devices(1):
        parts = make_components(config_of(tmp_path))
    assert (parts.model.vocab_size, parts.data.tokenizer.vocab_size) == (259, 260)
    template.write_text("<image>{{ messages[0]['content'] }}")
    with on_devices(1), pytest.raises(ValueError, match="prompts = 259: expected token ids below 259"):
        make_components(config_of(tmp_path))
    speaker = load_speaker(tmp_path / "model", SamplingConfig(max_new_tokens=1))
    with pytest.raises(ValueError, match="prompt = 259: expected token ids below 259"):
        next(speaker.answer([259], jax.random.key(0)))
    spec["added_tokens"][-1]["special"] = False
    path.write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=r"tokenizer.vocab_size = 260: expected at most 259"):
        load_speaker(tmp_path / "model", SamplingConfig(max_new_tokens=1))
