"""The wheel holds every package, and the recipes under our own name."""

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

from tools.imports import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed():
    folders = {
        path.parent.relative_to(ROOT) for top in ("rljax", "pallas_kernels") for path in ROOT.glob(f"{top}/**/*.py")
    }
    expected = {".".join(folder.parts) for folder in folders} | {"rljax.configs"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == expected
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {"rljax.configs": "configs"}
    assert all((ROOT / folder / "__init__.py").exists() for folder in (*folders, Path("configs")))


def test_the_commands_exist():
    from rljax.training import commands

    for entry in PROJECT["project"]["scripts"].values():
        module, function = entry.split(":")
        assert module == commands.__name__
        assert callable(getattr(commands, function))


def test_the_lock_file_holds_every_dependency():
    locked = (ROOT / "requirements.lock").read_text().lower().replace("_", "-")
    extras = PROJECT["project"]["optional-dependencies"]
    for dependency in (*PROJECT["project"]["dependencies"], *extras["test"], *extras["tb"]):
        name = dependency.split(">")[0].split("[")[0].lower().replace("_", "-")
        assert f"\n{name}==" in locked or f"\n{name}[" in locked, name


def test_the_tpu_extra_is_locked_as_jax_wants_it():
    """What jax[tpu] needs beside jax is in the two lock files, libtpu in the version that belongs to the jax here."""
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
