import ast
import json
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rljax
from rljax import algorithms
from rljax.training import commands
from tests.pages import blocks
from tests.training.in_process import call
from tests.training.subprocesses import metrics
from tools.imports import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = blocks(ROOT / "README.md")


def block(mark: str) -> str:
    (found,) = [text for text in BLOCKS if mark in text]
    return found


def test_the_algorithm_on_the_first_screen_is_ctpo():
    names = {}
    exec(block("def ctpo"), names)
    shape = (2, 3, 5)
    keys = jax.random.split(jax.random.key(0), 2)
    log_ratio, advantages = (jax.random.normal(key, shape) for key in keys)
    mask = jnp.ones(shape, bool)
    shown, ours = names["ctpo"](), algorithms.ctpo()
    np.testing.assert_array_equal(shown.ratio(log_ratio, advantages, mask), ours.ratio(log_ratio, advantages, mask))
    assert (shown.advantage, shown.aggregation) == (ours.advantage, ours.aggregation)


def test_the_losses_in_your_own_code():
    key, mask = jax.random.key(0), np.ones((2, 4, 6), bool)
    mask[0, 1, 3:] = False
    old_logp = -jax.random.uniform(key, mask.shape)
    names = {
        "rewards": jnp.array([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]),
        "tokens": jnp.zeros(mask.shape, jnp.int32),
        "mask": jnp.asarray(mask),
        "old_logp": old_logp,
        "logp": old_logp,
    }
    exec(block("algorithms.gspo()"), names)
    assert names["gradient"].shape == mask.shape
    assert jnp.max(jnp.abs(names["gradient"])) > 1e-3
    assert not names["gradient"][0, 1, 3:].any()


def test_the_kernel_on_its_own():
    names = {"hidden": jnp.ones((3, 4)), "unembedding": jnp.ones((5, 4)), "targets": jnp.array([0, 1, 2])}
    exec(block("token_stats"), names)
    np.testing.assert_allclose(names["logp"], -np.log(5), rtol=1e-6)


@pytest.mark.standard_promotion
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_task_of_ten_lines_trains(tmp_path):
    code = block("# my_task.py")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    ast.parse(code)
    (tmp_path / "my_task.py").write_text(code)
    digits = random.Random(0)
    with open(tmp_path / "my_task.jsonl", "w") as lines:
        for _ in range(200):
            word = "".join(digits.choices("0123456789", k=4))
            lines.write(json.dumps({"prompt": f"{word}=", "answer": word[::-1]}) + "\n")
    small = ("--steps", 3, "--rollout.prompts", 4, "--rollout.completions", 4, "--model.width", 32, "--model.layers", 1,
             "--evaluation.problems", 8, "--evaluation.samples", 2, "--evaluation.batch", 16)  # fmt: skip
    run = tmp_path / "run"
    code, output = call(commands.train, tmp_path / "my_task.py", "--run", run, *small, cwd=tmp_path)
    assert code == 0, output
    assert len(metrics(run, "rl")) == 3
    assert (run / "report.html").exists()


@pytest.mark.slow
@pytest.mark.standard_promotion
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_the_recipe_of_getting_started_trains(tmp_path, monkeypatch):
    task, recipe = blocks(ROOT / "docs/getting_started.md")
    monkeypatch.chdir(tmp_path)
    exec(task, {})
    (tmp_path / "my_task.py").write_text(recipe)
    small = ("--likelihood.steps", 3, "--steps", 2, "--evaluation.problems", 8, "--evaluation.samples", 2)
    code, output = call(commands.train, "my_task.py", *small, cwd=tmp_path)
    assert code == 0, output
    assert len(metrics(tmp_path / "runs/my_task", "rl")) == 2


def test_readme_is_short_and_counts_the_algorithms():
    assert len(README.splitlines()) <= 150
    assert f"losses of {len(algorithms.__all__)} algorithms" in README


def test_links_of_the_readme_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_make_targets_named_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z.][\w./-]*):", (ROOT / "Makefile").read_text(), flags=re.M))
    for named in re.findall(r"(?:`|^)make ([a-z.][\w./-]*)", README, flags=re.M):
        assert named in targets, named


def test_every_target_of_ci_is_documented():
    documented = README + (ROOT / "docs/testing.md").read_text()
    for target in re.findall(r"^make (\S+)", (ROOT / ".ci/run").read_text(), flags=re.M):
        assert f"make {target}" in documented, target


def test_the_readme_warns_of_the_unrelated_rljax_on_pypi():
    assert "pip install rljax\n" not in README
    assert "pip install rljax`" not in README
    assert "unrelated" in README
    assert rljax.__doc__
