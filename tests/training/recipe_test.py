"""Functions are fixed in the recipe, also jitted ones, whose signature tyro cannot read."""

import pytest

from rljax.models import PretrainedModel
from rljax.training import recipe
from tests.training.subprocesses import ROOT

RECIPE = """
import dataclasses
import jax
from tests.training.tiny import config as tiny, some_right

config = dataclasses.replace(tiny, reward_map=jax.jit(some_right))
"""


@pytest.fixture
def jitted(tmp_path):
    (tmp_path / "jitted.py").write_text(RECIPE)
    return tmp_path / "jitted.py"


def test_a_recipe_may_have_jitted_functions(jitted):
    config = recipe.load(jitted, ["--steps", "3", "--model.width", "48"])
    assert (config.steps, config.model.width, config.reward_map.__name__) == (3, 48, "some_right")


def test_fields_of_a_pretrained_model_are_overridden():
    model = recipe.load(
        ROOT / "tests/training/pretrained.py", ["--model.folder", "a", "--model.ignore", "b", "c"]
    ).model
    assert model == PretrainedModel("a", max_length=64, ignore=("b", "c"))


@pytest.mark.parametrize("field", ["--algorithm", "--reward-map", "--model.activation"])
def test_functions_cannot_be_overridden(jitted, field, capsys):
    with pytest.raises(SystemExit):
        recipe.load(jitted, [field, "other"])
    assert f"{field} is fixed to" in " ".join(capsys.readouterr().err.split())
