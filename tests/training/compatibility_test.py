"""Checkpoints of another format version or of other task data are refused; the error names the differences."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from rljax.tasks import Problem, TaskData, Tokenizer, exact_match
from rljax.training.checkpoint.checkpoints import Checkpoints
from rljax.training.checkpoint.compatibility import VERSION, encode_data, encode_shapes, read_params, require_same_data
from rljax.training.checkpoint.folder import RunFolder, read_json, write_json
from rljax.training.errors import RunError
from tests.training import tiny

PROBLEMS = [Problem(f"{i}+1=", str(i + 1), solution=f"so {i + 1}") for i in range(20)]
DATA = TaskData(Tokenizer.train(["abc"], vocab_size=270), PROBLEMS[:10], PROBLEMS[5:15],
                {"easy": PROBLEMS[15:], "hard": PROBLEMS[:1]}, exact_match)  # fmt: skip
RECORD = {"version": VERSION, "task": encode_data(DATA), "shapes": {}}


def test_the_same_data_are_accepted():
    require_same_data(RECORD, DATA, "run = 'r'")
    require_same_data(RECORD, dataclasses.replace(DATA, prompts=[*DATA.prompts], solved=bool), "run = 'r'")


def with_answer(problems, i, answer="?"):
    return [*problems[:i], dataclasses.replace(problems[i], answer=answer), *problems[i + 1 :]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": with_answer(with_answer(DATA.prompts, 0), 9)}, "2 of 10 prompts differ from those of the run"),
        ({"prompts": DATA.prompts[1:]}, r"9 prompts instead of the run's 10 \(0 were added, 1 were removed\)"),
        (
            {"prompts": [*DATA.prompts, Problem("a", "b")]},
            r"11 prompts instead of the run's 10 \(1 were added, 0 were removed\)",
        ),
        ({"prompts": DATA.prompts[::-1]}, "the 10 prompts are in another order"),
        ({"prompts": [*DATA.prompts[:9], DATA.prompts[8]]}, "1 of 10 prompts differ from those of the run"),
        (
            {"demonstrations": with_answer(DATA.demonstrations, 3)},
            "1 of 10 demonstrations differ from those of the run",
        ),
        (
            {"held_out": {**DATA.held_out, "hard": PROBLEMS[1:2]}},
            "1 of 6 held-out problems differ from those of the run",
        ),
        (
            {"held_out": {"easy": PROBLEMS[15:], "Hard": PROBLEMS[:1]}, "headline": "easy"},
            "1 of 6 held-out problems differ",
        ),
        ({"stop_ids": (1, 5)}, r"the stop tokens are \[1, 5\] instead of \[1\]"),
        ({"tokenizer": Tokenizer.train(["abd"], vocab_size=270)}, "the tokenizer differs"),
    ],
)
def test_what_changed_is_named(changes, message):
    with pytest.raises(
        RunError, match=f"run = 'r' was trained with other task data: {message}[^;]*\\. Restore the task's"
    ):
        require_same_data(RECORD, dataclasses.replace(DATA, **changes), "run = 'r'")


def test_all_that_changed_is_named():
    other = dataclasses.replace(DATA, prompts=with_answer(DATA.prompts, 0), demonstrations=[])
    with pytest.raises(RunError, match=r"1 of 10 prompts differ .*; 0 demonstrations instead of the run's 10"):
        require_same_data(RECORD, other, "run = 'r'")


def test_a_run_of_another_version_is_named_before_its_config_is_compared(tmp_path):
    recipe, folder = tmp_path / "recipe.py", RunFolder(tmp_path / "run")
    folder.hold()
    folder.claim(tiny.config, recipe, [])
    (folder.path / "checkpoints" / "3").mkdir(parents=True)
    folder.claim(tiny.config, recipe, [])
    owner = read_json(folder.path / "config.json", None)
    write_json(folder.path / "config.json", {**owner, "version": 1, "identity": {}})
    with pytest.raises(RunError, match=rf"saved by another version of rljax .* version 1, expected {VERSION}"):
        folder.claim(tiny.config, recipe, [])
    assert read_json(folder.path / "config.json", None)["version"] == 1


def test_parameters_of_another_version_are_named(tmp_path):
    for version in (1, VERSION):
        folder, tree = tmp_path / str(version), {"w": jnp.ones(3)}
        checkpoints = Checkpoints(folder)
        checkpoints.save(0, {"params": tree}, {**RECORD, "version": version, "shapes": encode_shapes(tree)})
        checkpoints.close()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    assert read_params(tmp_path / str(VERSION), abstract, DATA.tokenizer, "run = 'r'").tree["params"]["w"].sum() == 3
    for path in (tmp_path / "1").rglob("digests.*"):
        path.unlink()  # version 1 had no digests
    with pytest.raises(
        RunError, match=rf"run = 'r' was saved by another version of rljax .* version 1, expected {VERSION}"
    ):
        read_params(tmp_path / "1", abstract, DATA.tokenizer, "run = 'r'")
