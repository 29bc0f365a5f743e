"""Documentation: doctests, docstrings, and completeness of the reference and algorithm pages."""

import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import runpy
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import pytest

import rljax
from rljax import algorithms
from tests.pages import blocks
from tests.public import PUBLIC, TRAINER
from tools.imports import ROOT

NUMBER = re.compile(r"-?\d+\.?(\d*)(?:e([-+]?\d+))?")
DIRECTIVE = re.compile(r"^::: (\S+)((?:\n +.*)*)", flags=re.M)


class Rounded(doctest.OutputChecker):
    """Compares numbers up to the rounding shown (three decimals or more) and other text exactly, without spaces."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        rest = ["".join(NUMBER.sub("#", text).split()) for text in (want, got)]
        numbers = [list(NUMBER.finditer(text)) for text in (want, got)]
        return rest[0] == rest[1] and len(numbers[0]) == len(numbers[1]) and all(map(same_number, *numbers))


def same_number(shown: re.Match, found: re.Match) -> bool:
    """Equal to half a unit of the last digit shown; to 1e-6 if fewer than three decimals are shown."""
    value, decimals = float(shown[0]), len(shown[1])
    half = 0.5 * 10.0 ** (int(shown[2] or 0) - decimals) if decimals > 2 else 0.0
    return abs(value - float(found[0])) <= half + 1e-6 * (abs(value) or 0.1)


@pytest.mark.parametrize(("want", "got", "same"), [
    ("[0.866 1.]", "[0.86600006 1.        ]", True), ("[0.867 1.]", "[0.86600006 1.]", False), ("1.0", "1.06", False),
    ("[True, False]", "[True, True]", False), ("[1.0]", "[1.0, 1.0]", False), ("nan", "1.0", False), ("2", "3", False),
    ("0.0", "-0.04", False), ("-0.0", "0.0", True), ("[0.693 0.   ]", "[0.693147 0.0004  ]", False),
    ("1.", "1.4", False), ("0.6931", "0.69314718", True), ("0.6931", "0.69316", False), ("0.693", "0.6936", False),
    ("0.2", "0.200000003", True), ("0.5", "0.52", False), ("1.234e-05", "1.2341e-05", True),
    ("1.234e-05", "1.24e-05", False), ("1e-05", "2e-05", False), ("12.5", "12.5001", False), ("[1 2]", "[12]", False),
])  # fmt: skip
def test_a_number_counts_to_the_digits_shown(want, got, same):
    assert Rounded().check_output(want, got, 0) == same


def with_examples() -> list[str]:
    found = (path for top in ("rljax", "pallas_kernels") for path in sorted((ROOT / top).rglob("*.py")))
    paths = [path.relative_to(ROOT).with_suffix("") for path in found if ">>> " in path.read_text()]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


@pytest.mark.parametrize("name", with_examples())
def test_examples(name):
    if name.split(".")[1] in TRAINER:
        pytest.importorskip("flax")
    tests = doctest.DocTestFinder().find(importlib.import_module(name), name)
    runner = doctest.DocTestRunner(checker=Rounded())
    results = [runner.run(test) for test in tests if test.examples]
    assert results
    assert not sum(result.failed for result in results)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_symbol_is_documented(name):
    assert inspect.getdoc(PUBLIC[name])
    assert ">>> " in PUBLIC[name].__doc__ or not inspect.isfunction(PUBLIC[name]), f"{name} has no example"


@pytest.mark.parametrize("name", algorithms.__all__)
def test_an_algorithm_gives_its_equation_and_its_source(name):
    says = inspect.getdoc(getattr(algorithms, name)).split(">>> ")[0]
    assert re.search(r"\d{4}\.\d{5}", says)
    equation = "\n".join(line for line in says.splitlines() if line.startswith("    "))
    assert re.search(r"A = .*w = .*e\^f = ", equation, flags=re.S)


def shown(pages: str) -> set[int]:
    found = set()
    for name, options in DIRECTIVE.findall(pages):
        try:
            thing = importlib.import_module(name)
        except ModuleNotFoundError:
            parent, _, own = name.rpartition(".")
            thing = getattr(importlib.import_module(parent), own)
        found.add(id(thing))
        if inspect.ismodule(thing) and "members: false" not in options:
            found |= set(map(id, members(thing)))
    return found


def members(module) -> list[object]:
    """Objects on a module's page. A function named like its own file is not shown; its file needs a directive."""
    here = {k: v for k, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__}
    names = getattr(module, "__all__", here)
    package = hasattr(module, "__path__")
    hidden = {n for n in names if package and importlib.util.find_spec(f"{module.__name__}.{n}")}
    return [getattr(module, name) for name in names if name not in hidden]


PAGES_OF_REFERENCE = sorted((ROOT / "docs/reference").glob("*.md"))
REFERENCE = "\n".join(path.read_text() for path in PAGES_OF_REFERENCE if path.stem not in TRAINER)


def test_every_public_symbol_is_in_the_reference():
    assert [name for name, value in PUBLIC.items() if id(value) not in shown(REFERENCE)] == []


@pytest.mark.parametrize(
    "gone", ["rljax.ratio", "rljax.objective", "rljax.advantage.prefix_tree", "pallas_kernels.segmented_cumsum"]
)
def test_a_page_that_is_missing_is_noticed(gone):
    fewer = shown(REFERENCE.replace(f"::: {gone}\n", ""))
    assert [name for name, value in PUBLIC.items() if id(value) not in fewer]


@pytest.mark.parametrize("family", [module.name for module in pkgutil.iter_modules(algorithms.__path__)])
def test_a_family_of_algorithms_has_a_page_that_shows_no_others(family):
    """tools/docs/hooks.py appends the algorithms that the page does not mention."""
    page = (ROOT / f"docs/algorithms/{family}.md").read_text()
    shown = re.findall(r"^\{\{ (\w+) \}\}$", page, flags=re.M)
    assert len(shown) == len(set(shown))
    assert set(shown) <= set(importlib.import_module(f"rljax.algorithms.{family}").__all__)


def test_every_algorithm_is_of_one_family():
    families = [
        importlib.import_module(f"rljax.algorithms.{m.name}") for m in pkgutil.iter_modules(algorithms.__path__)
    ]
    assert Counter(name for family in families for name in family.__all__) == Counter(algorithms.__all__)


def test_the_table_in_the_docs_is_the_algorithms():
    table = runpy.run_path(str(ROOT / "tools/algorithm_table.py"))["table"]()
    assert table in (ROOT / "docs/algorithms/index.md").read_text()


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in navigation, page


def test_the_task_of_the_contributing_page_loads():
    code = re.search(r"```python\n(import dataclasses.*?)```", (ROOT / "docs/contributing.md").read_text(), re.DOTALL)
    assert code is not None
    names = {"__name__": "recipe"}
    exec(code[1], names)
    data = names["config"].task.load()
    assert len(data.demonstrations) == len(data.prompts) == len(data.held_out["sums"]) == 60
    assert data.reward("1+2=", "3", "3") == 1


PAGES = [
    "algebra.md",
    "train/pods.md",
    *(f"algorithms/{path.name}" for path in sorted((ROOT / "docs/algorithms").glob("*.md"))),
]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page):
    samples = blocks(ROOT / "docs" / page)
    assert samples
    names = on_the_pages()
    for block in samples:
        if block.startswith(">>> "):
            test = doctest.DocTestParser().get_doctest(block, names, page, None, 0)
            assert not doctest.DocTestRunner(checker=Rounded()).run(test, clear_globs=False).failed
        else:
            exec(block, names)


def on_the_pages() -> dict:
    full = partial(jnp.full, (1, 2, 3))
    rollouts = rljax.Rollouts(
        tokens=full(0), mask=full(True), rewards=jnp.array([[1.0, 0.0]]), old_logp=full(-1.0), sampled_logp=full(-1.25),
        ref_logp=full(-1.5), entropy=full(0.5), proxy=full(0.5),
    )  # fmt: skip
    names = ("mask", "old_logp", "rewards", "sampled_logp", "tokens")
    arrays = {name: getattr(rollouts, name) for name in names} | {
        "hidden": jnp.ones((1, 2, 3, 4)), "unembedding": jnp.ones((40, 4)), "values": full(0.5),
        "new_values": full(0.25), "teacher_logp": full(-0.5), "teacher_hidden": jnp.ones((1, 2, 3, 5)),
        "teacher_unembedding": jnp.ones((40, 5)),
    }  # fmt: skip
    return {name: getattr(rljax, name) for name in rljax.__all__} | arrays | {
        "dataclasses": dataclasses, "jax": jax, "jnp": jnp, "partial": partial, "rollouts": rollouts,
        "logp": full(-0.75), "sign": jnp.array([[1, -1]]), "key": jax.random.key(0), "algorithm": algorithms.dapo(),
        "batch": rljax.make_batch(algorithms.dapo(), rollouts),
    }  # fmt: skip
