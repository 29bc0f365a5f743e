import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest

import rljax
from rljax import _entry_points
from tools.imports import FOLDERS, ROOT, files, imported

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
EXTRAS = PROJECT["optional-dependencies"]
REMEDY = "pip install 'rljax-llm[train]'"


def distribution(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def all_of(extra: str) -> list[str]:
    found = []
    for requirement in EXTRAS[extra]:
        if distribution(requirement) == PROJECT["name"]:
            (included,) = re.findall(r"\[(.*)\]", requirement)
            found += [needed for name in included.split(",") for needed in all_of(name)]
        else:
            found.append(requirement)
    return found


def test_every_package_is_listed():
    folders = {
        path.parent.relative_to(ROOT) for top in ("rljax", "pallas_kernels") for path in ROOT.glob(f"{top}/**/*.py")
    }
    expected = {".".join(folder.parts) for folder in folders} | {"rljax.configs"}
    assert set(SETUPTOOLS["packages"]) == expected
    assert SETUPTOOLS["package-dir"] == {"rljax.configs": "configs"}
    assert all((ROOT / folder / "__init__.py").exists() for folder in (*folders, Path("configs")))


def test_both_packages_are_typed():
    for package in ("rljax", "pallas_kernels"):
        assert (ROOT / package / "py.typed").exists()
        assert SETUPTOOLS["package-data"][package] == ["py.typed"]


def test_the_commands_exist():
    for entry in PROJECT["scripts"].values():
        module, function = entry.split(":")
        assert module == _entry_points.__name__
        assert callable(getattr(_entry_points, function))


def test_the_base_requires_jax_and_jaxtyping_alone():
    assert {distribution(needed) for needed in PROJECT["dependencies"]} == {"jax", "jaxtyping"}
    try:
        installed = requires(PROJECT["name"]) or ()
    except PackageNotFoundError:
        pytest.skip("the project is not installed here")
    assert {distribution(needed) for needed in installed if "extra ==" not in needed} == {"jax", "jaxtyping"}


def test_the_core_imports_what_the_base_requires():
    """The trainer imports only requirements of `train`, or checks for them first."""
    third_party = {}
    for file in files("pallas_kernels", "rljax"):
        area = file.split("/")[1] in ("models", "rollout", "tasks", "text", "training")
        modules = {name.split(".")[0] for name in imported(file)} - {*sys.stdlib_module_names, *FOLDERS}
        third_party.setdefault(area, set()).update(modules)
    assert third_party[False] - {"numpy"} == {"jax", "jaxtyping"}  # NumPy is required by jax
    needed = next(
        ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "rljax/training/__init__.py").read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "_NEEDED"
    )
    other = {distribution(needed).replace("-", "_") for extra in ("hf", "gym", "tb") for needed in all_of(extra)}
    other |= {"jax", "jaxtyping", "ml_dtypes"}  # ml_dtypes is required by jax
    assert set(needed) == {name for name in third_party[True] if name.lower() not in other}
    named = {"orbax": "orbax-checkpoint", "tensorflow_datasets": "tensorflow-datasets"}
    assert {named.get(name, name) for name in needed} <= {distribution(needed) for needed in all_of("train")}


def test_no_version_has_an_upper_bound():
    """An upper bound would prevent installing the library next to other packages, and none is needed."""
    for requirement in (*PROJECT["dependencies"], *(needed for extra in EXTRAS for needed in EXTRAS[extra])):
        assert "<" not in requirement.split(";")[0], requirement
    assert PROJECT["requires-python"] == ">=3.11"


def test_the_version_is_in_one_place():
    assert "version" in PROJECT["dynamic"]
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "rljax.__version__"}
    for file, pattern in (("CITATION.cff", r"^version: (.+)$"), ("MODULE.bazel", r'^    version = "(.+)",$')):
        assert re.findall(pattern, (ROOT / file).read_text(), flags=re.M) == [rljax.__version__], file
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## Unreleased" in changelog or f"## {rljax.__version__}" in changelog
    try:
        assert version(PROJECT["name"]) == rljax.__version__
    except PackageNotFoundError:
        pytest.skip("the project is not installed here")


def test_the_license_is_apache():
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "license: Apache-2.0\n" in (ROOT / "CITATION.cff").read_text()


def without_flax_and_grain(code: str) -> subprocess.CompletedProcess:
    hide = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name in ("flax", "grain") else find(name, *rest)
"""
    return subprocess.run([sys.executable, "-c", hide + code], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "chat"])
def test_a_command_without_its_packages_says_what_to_install(command):
    done = without_flax_and_grain(f"from rljax import _entry_points; _entry_points.{command}()")
    assert done.returncode == 1
    assert done.stderr == f"error: rljax.training needs flax, grain: {REMEDY}\n"


def test_the_trainer_without_its_packages_says_what_to_install():
    done = without_flax_and_grain("import rljax.training.commands")
    assert done.stderr.endswith(f"ImportError: rljax.training needs flax, grain: {REMEDY}\n")


def test_the_lock_file_holds_every_dependency():
    locked = (ROOT / "requirements.lock").read_text().lower().replace("_", "-")
    for needed in (*PROJECT["dependencies"], *all_of("test")):
        name = distribution(needed)
        assert f"\n{name}==" in locked or f"\n{name}[" in locked, name


def test_the_tpu_extra_is_locked_as_jax_wants_it():
    """The lock files contain the requirements of jax[tpu], with the libtpu version required by the installed jax."""
    locked = [(ROOT / name).read_text() for name in ("requirements.lock", "requirements-tpu.lock")]
    of_tpu = [
        line.split(";")[0].strip() for line in requires("jax") or () if "extra == 'tpu'" in line.replace('"', "'")
    ]
    names = {re.split(r"[<>=]", need)[0] for need in of_tpu}
    assert {"libtpu", "jaxlib"} <= names
    assert [name for name in names if not re.search(rf"^{name}==", "\n".join(locked), flags=re.M)] == []
    (wanted,) = [need for need in of_tpu if need.startswith("libtpu")]
    assert wanted.removesuffix("*") in locked[1]


def test_core_tests_of_the_makefile_exist():
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (line,) = [line for line in makefile.splitlines() if line.startswith("CORE_TESTS")]
    for path in line.split(":=")[1].split():
        assert (ROOT / path).exists(), path
