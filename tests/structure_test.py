"""Structure of the code: layered imports without cycles, mesh axes named in one file, a task-independent trainer."""

import ast
import re
from graphlib import TopologicalSorter

import pytest

from rljax.models.sharding import MESH_AXES
from rljax.tasks.strings import verifier
from rljax.tasks.strings.problems import LEVELS
from tools.imports import ROOT, files, graph, module_of

# Layers from low to high. A module belongs to its most specific entry; modules of an entry may import each other.
LAYERS = (
    {"pallas_kernels"},
    {"rljax._checks", "rljax._expression", "rljax._folders", "rljax._guards", "rljax._segments", "rljax._sharding"},
    {"rljax.aggregation", "rljax.objective", "rljax.divergence", "rljax.schedule"},
    {"rljax.advantage", "rljax.carried", "rljax.correction", "rljax.distillation", "rljax.penalty", "rljax.ratio",
     "rljax.rewards"},
    {"rljax.regression"},
    {"rljax.logprobs", "rljax.metrics", "rljax.algorithms"},
    {"rljax"},
    {"rljax.text"},
    {"rljax.models", "rljax.tasks"},
    {"rljax.rollout"},
    {"rljax.training.errors", "rljax.training.keys", "rljax.training.description", "rljax.training.needs",
     "rljax.training.placement", "rljax.training.optimizer", "rljax.training.terminal"},
    {"rljax.training.config", "rljax.training.recipe", "rljax.training.processes", "rljax.training"},
    {"rljax.training.held_out", "rljax.training.validation", "rljax.training.checkpoint", "rljax.training.step",
     "rljax.training.nonfinite"},
    {"rljax.training.components"},
    {"rljax.training.collect", "rljax.training.export"},
    {"rljax.training.chat", "rljax.training.evaluation", "rljax.training.stages"},
    {"rljax.training.report"},
    {"rljax.training.run"},
    {"rljax.training.commands"},
    {"rljax._entry_points"},
    {"configs", "launch"},
)  # fmt: skip
APART = ("rljax.models", "rljax.tasks")  # in one layer, but must not import each other
SOURCES = [file for file in files() if not file.startswith("tests/")]


def entry(module: str) -> tuple[int, str]:
    parts = module.split(".")
    for i in range(len(parts), 0, -1):
        prefix = ".".join(parts[:i])
        for level, layer in enumerate(LAYERS):
            if prefix in layer and (prefix not in ("rljax", "rljax.training") or i == len(parts)):
                return level, prefix
    raise ValueError(f"{module} is not in LAYERS: add the module")


def upward(needs: dict) -> list[str]:
    """Imports from a higher layer, or between the entries of APART."""
    found = []
    for file in SOURCES:
        level, own = entry(module_of(file))
        for other in needs[file]:
            theirs, their_entry = entry(module_of(other))
            if theirs > level or (own in APART and their_entry in APART and own != their_entry):
                found.append(f"{file} imports {other}")
    return found


def test_nothing_imports_from_a_higher_layer():
    assert upward(graph()) == []


def test_there_is_no_import_circle():
    assert len(list(TopologicalSorter({file: graph()[file] for file in SOURCES}).static_order())) == len(SOURCES)


@pytest.mark.parametrize(("file", "other"), [
    ("rljax/ratio/clips.py", "rljax/algorithms/groups.py"), ("rljax/tasks/task.py", "rljax/models/protocol.py"),
    ("rljax/training/step/policy.py", "rljax/training/report/page.py"), ("rljax/training/run.py", "launch/evaluate.py"),
    ("pallas_kernels/_dispatch.py", "rljax/_checks.py"),
])  # fmt: skip
def test_an_import_upward_is_noticed(file, other):
    assert upward({**graph(), file: graph()[file] | {other}}) == [f"{file} imports {other}"]


def literals(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    expressions = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in expressions)
    return {node.value for node in constants if isinstance(node.value, str)}


def test_one_file_names_the_axes_of_the_mesh():
    on_meshes = [file for file in SOURCES if not file.startswith("rljax/tasks/")]  # these use a folder `data`
    assert [file for file in on_meshes if literals(file) & set(MESH_AXES)] == ["rljax/models/sharding.py"]


def test_the_trainer_knows_no_task():
    functions = [name for name, x in vars(verifier).items() if getattr(x, "__module__", "") == verifier.__name__]
    assert set(functions) == {"read_steps", "last_output", "right_chain"}
    named = re.compile("|".join(map(re.escape, [*functions, *LEVELS, "level 2", "right chain", "StringsTask"])))
    for file in files("rljax/training"):
        assert not named.search((ROOT / file).read_text()), file
        assert not any("tasks/strings" in needed for needed in graph()[file]), file
