import json
import shutil
import subprocess
import sys

import pytest
from filelock import FileLock

from rljax.training import commands
from tests.training.in_process import call
from tests.training.subprocesses import ROOT, TINY, environment

pytestmark = [pytest.mark.standard_promotion, pytest.mark.filterwarnings("ignore:Sharding info not provided")]


@pytest.fixture(scope="module")
def run_tiny(data):
    def run_tiny(run, *overrides, recipe=TINY, devices=1):
        task = ("--task.data-dir", data) if recipe == TINY else ()
        return call(commands.train, recipe, "--run", run, *task, *overrides, cwd=run.parent, devices=devices)

    return run_tiny


def evaluate(*arguments):
    return call(commands.evaluate, *arguments, cwd=ROOT)


@pytest.fixture(scope="module")
def begun(tmp_path_factory, run_tiny):
    run = tmp_path_factory.mktemp("begun") / "run"
    code, output = run_tiny(run, "--steps", "1", "--evaluation.every", "0")
    assert code == 0, output
    return run


def test_a_recipe_that_does_not_exist(tmp_path, run_tiny):
    code, output = run_tiny(tmp_path / "run", recipe=tmp_path / "nothing.py")
    assert code == 1
    assert "nothing.py' does not exist" in output
    assert "strings.py" in output
    assert "Traceback" not in output


def test_a_misspelled_field_suggests_the_right_one(tmp_path, run_tiny):
    code, output = run_tiny(tmp_path / "run", "--optimizer.learning-rte", "1e-3")
    assert code == 2
    assert "--optimizer.learning-rate" in output
    assert not (tmp_path / "run").exists()


def test_a_misspelled_value(tmp_path, run_tiny):
    code, output = run_tiny(tmp_path / "run", "--steps", "many")
    assert code == 2
    assert "many" in output
    assert "--steps INT" in output


def test_a_misspelled_choice(tmp_path, run_tiny):
    code, output = run_tiny(tmp_path / "run", "--model.dtype", "bfloat61")
    assert code == 2
    assert "bfloat61" in output
    assert "'bfloat16'" in output


def test_a_field_out_of_range(tmp_path, run_tiny):
    code, output = run_tiny(tmp_path / "run", "--optimizer.clip-norm", "-1")
    assert code != 0
    assert "optimizer.clip_norm = -1" in output
    assert "positive" in output


def test_a_mesh_that_does_not_divide(tmp_path, run_tiny):
    code, output = run_tiny(tmp_path / "run", "--mesh.data", "3", devices=8)
    assert code == 1
    assert "(3, 1, 1)" in output
    assert "8 devices" in output


def test_rows_that_do_not_divide_over_the_mesh(tmp_path, run_tiny):
    code, output = run_tiny(tmp_path / "run", "--evaluation.batch", "12", devices=8)
    assert code == 1
    assert "evaluation.batch = 12: expected a multiple of mesh.data × mesh.fsdp = 8" in output


def test_a_sequence_longer_than_the_model(tmp_path, run_tiny):
    code, output = run_tiny(tmp_path / "run", "--rollout.sampling.max-new-tokens", "100")
    assert code != 0
    assert "= 108: expected at most model.max_length = 64" in " ".join(output.replace("│", " ").split())


def test_a_run_folder_that_belongs_to_another_config(begun, run_tiny):
    code, output = run_tiny(begun, "--steps", "2", "--optimizer.learning-rate", "0.5")
    assert code == 1
    assert "belongs to another config" in output
    assert "optimizer.learning_rate: 0.001 -> 0.5" in output


def test_a_run_folder_in_use(tmp_path, run_tiny):
    run = tmp_path / "run"
    run.mkdir()
    with FileLock(run / ".lock"):
        code, output = run_tiny(run)
    assert code == 1
    assert "another process is using this folder" in output
    assert not (run / "config.json").exists()


RECIPE_THAT_FAILS = """
import dataclasses
import jax.numpy as jnp
from tests.training.tiny import config
def penalty(stats, batch):
    return jnp.where(jnp.sum(batch.mask) > 0, jnp.nan, 0.0)
config = dataclasses.replace(config, penalty=penalty)
"""


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(tmp_path, run_tiny):
    recipe, run = tmp_path / "recipe.py", tmp_path / "run"
    recipe.write_text(RECIPE_THAT_FAILS)
    code, output = run_tiny(run, recipe=recipe)
    assert code == 1
    assert "rl step 0: loss = nan" in output
    assert (run / "nonfinite" / "rl-0.npz").exists()
    assert (run / "checkpoints" / "13").is_dir()  # the start of stage 2, the last good checkpoint
    assert f"--start-from {run}" in output


def test_a_reward_that_raises_is_shown_with_what_it_was_given(tmp_path, run_tiny):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import dataclasses\nfrom rljax.tasks import JsonlTask\nfrom tests.training.tiny import config\n"
        "def reward(prompt, completion, answer):\n    return int(answer)\n"
        "config = dataclasses.replace(config, task=JsonlTask('task.jsonl', reward=reward),\n"
        "    likelihood=dataclasses.replace(config.likelihood, steps=0),\n"
        "    evaluation=dataclasses.replace(config.evaluation, watch=()))\n"
    )
    (tmp_path / "task.jsonl").write_text("".join(f'{{"prompt": "{i}", "answer": "b"}}\n' for i in range(20)))
    code, output = run_tiny(tmp_path / "run", recipe=recipe)
    assert code == 1
    assert "raised ValueError: invalid literal for int()" in output
    assert "recipe.py, line 5" in output


def test_a_run_does_not_resume_on_changed_data(tmp_path, run_tiny):
    recipe, data, run = tmp_path / "recipe.py", tmp_path / "task.jsonl", tmp_path / "run"
    recipe.write_text(
        "import dataclasses\nfrom rljax.tasks import JsonlTask\nfrom tests.training.tiny import config\n"
        "config = dataclasses.replace(config, task=JsonlTask('task.jsonl'), steps=1,\n"
        "    likelihood=dataclasses.replace(config.likelihood, steps=0),\n"
        "    evaluation=dataclasses.replace(config.evaluation, watch=()))\n"
    )
    data.write_text("".join(f'{{"prompt": "{i}", "answer": "b"}}\n' for i in range(20)))
    code, output = run_tiny(run, recipe=recipe)
    assert code == 0, output
    data.write_text(data.read_text().replace('{"prompt": "7", "answer": "b"}', '{"prompt": "7", "answer": "c"}'))
    code, output = run_tiny(run, "--steps", "2", recipe=recipe)
    assert code == 1
    assert (
        "was trained with other task data: 1 of 18 prompts differ from those of the run; the tokenizer differs. Restore"
        in output
    )
    assert len(list((run / "checkpoints").glob("[0-9]*"))) > 0


def test_a_prompt_longer_than_its_columns(tmp_path, run_tiny):
    code, output = run_tiny(tmp_path / "run", "--rollout.prompt-length", "6", "--rollout.no-leave-out-long")
    assert code == 1
    assert "rollout.prompt_length = 6: expected at least the 8 tokens of the prompt" in output
    code, output = run_tiny(tmp_path / "run", "--steps", "0", "--likelihood.steps", "1")
    assert code == 0, output  # the failed attempt does not keep the folder locked


def test_start_from_a_folder_without_a_stage_one(tmp_path, run_tiny):
    code, output = run_tiny(tmp_path / "run", "--start-from", str(tmp_path))
    assert code == 1
    assert f"start_from = '{tmp_path}'" in output


def test_start_from_a_run_of_another_model(tmp_path, run_tiny):
    code, output = run_tiny(tmp_path / "first", "--steps", "0")
    assert code == 0, output
    code, output = run_tiny(tmp_path / "run", "--start-from", str(tmp_path / "first"), "--model.layers", "2")
    assert code == 1
    assert f"start_from = '{tmp_path / 'first'}' holds another model" in output
    code, output = evaluate(str(tmp_path / "first"), "--model.width", "64")
    assert code == 1
    assert "holds another model" in output


def test_the_jsonl_line_that_is_corrupt_is_named(tmp_path, run_tiny):
    data, recipe = tmp_path / "task.jsonl", tmp_path / "recipe.py"
    data.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a"\n')
    recipe.write_text(
        "import dataclasses\nfrom rljax.tasks import JsonlTask\nfrom tests.training.tiny import config\n"
        f"config = dataclasses.replace(config, task=JsonlTask({str(data)!r}))\n"
    )
    code, output = run_tiny(tmp_path / "run", recipe=recipe)
    assert code == 1
    assert "task.jsonl" in output
    assert "line 2" in output


def test_evaluation_prints_every_level_with_its_interval(begun):
    code, output = evaluate(str(begun))
    assert code == 0, output
    levels = json.loads((begun / "evaluation.json").read_text())["levels"]
    assert set(levels) >= {"level 1", "level 2 held-out pairs", "level 4"}
    for figures in levels.values():
        for name in ("pass@1", "pass@2", "greedy", "right chain"):
            value, low, high = figures[name]
            assert 0 <= low <= value <= high <= 1
    assert "pass@2" in output
    assert "level 2 held-out pairs" in output


def test_evaluating_a_folder_that_holds_no_run(tmp_path):
    code, output = evaluate(str(tmp_path))
    assert code == 1
    assert "holds no run" in output


def test_evaluating_a_run_that_has_no_checkpoint(begun, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(begun / "config.json", run / "config.json")
    code, output = evaluate(str(run))
    assert code == 1
    assert "no checkpoint yet" in output


def test_help_explains_every_field():
    command = [sys.executable, str(ROOT / "launch/tpu_train.py"), str(TINY), "--help"]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    for words in ("--steps", "Rollouts of stage 2", "--optimizer.learning-rate", "Peak learning rate", "--mesh.fsdp"):
        assert words in done.stdout
