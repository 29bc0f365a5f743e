"""BUILD matches the files and their imports, and the core targets depend only on JAX and jaxtyping."""

import ast

import pytest

from tools import build_file
from tools.imports import ROOT, files

LIGHT = {"@pypi//jax", "@pypi//jaxtyping"}


def read(text: str) -> dict[str, tuple[set[str], set[str]]]:
    """(sources, dependencies) of each Python target of a BUILD file, by label."""
    calls = [node.value for node in ast.parse(text).body if isinstance(node, ast.Expr)]
    calls = [
        call for call in calls if isinstance(call, ast.Call) and ast.unparse(call.func) in ("py_library", "py_test")
    ]
    found = {}
    for call in calls:
        lists = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in ("name", "srcs", "deps")}
        found[f":{lists['name']}"] = set(lists["srcs"]), set(lists.get("deps", ()))
    return found


def reached(label: str, targets: dict) -> set[str]:
    seen, todo = set(), [label]
    while todo:
        if (item := todo.pop()) not in seen:
            seen.add(item)
            todo += targets[item][1] if item in targets else ()
    return seen


@pytest.fixture(scope="module")
def targets():
    return read((ROOT / "BUILD").read_text())


def test_build_is_current():
    assert (ROOT / "BUILD").read_text() == build_file.text(), "run `make generate`"


def test_every_file_is_in_one_target(targets):
    named = [source for sources, _ in targets.values() for source in sources if source[0] != ":"]
    assert sorted(named) == sorted(set(files()) - {"tests/run_pytest.py"})  # added by py_test
    assert len(named) > 200


def test_the_core_is_light(targets):
    assert reached(":pallas_kernels", targets) == {":pallas_kernels", *LIGHT}
    assert reached(":rljax", targets) == {":rljax", ":pallas_kernels", "@pypi//numpy", *LIGHT}
    assert "@pypi//optax" in reached(":launch", targets)  # a check of `reached`


@pytest.mark.parametrize(("file", "dependency"), [
    ("rljax/_segments.py", ":pallas_kernels"), ("rljax/models/layers.py", "@pypi//flax"),
    ("launch/tpu_train.py", ":rljax/_entry_points"), ("tests/ratio_test.py", ":rljax"),
    ("rljax/training/checkpoint/checkpoints.py", "@pypi//orbax_checkpoint"),
])  # fmt: skip
def test_an_import_is_a_dependency_of_its_target(file, dependency, targets):
    assert dependency in build_file.dependencies(file)
    assert dependency in targets[build_file.target_of(file)][1]
