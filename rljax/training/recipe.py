"""Recipes: Python files that hold a `config`, overridden field by field on the command line."""

import dataclasses
import functools
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from rljax.training.config import Config


def default_recipe() -> Path:
    """The embedded recipe: `configs/strings.py`, also when installed from a wheel."""
    spec = importlib.util.find_spec("rljax.configs")
    folders = list(spec.submodule_search_locations or []) if spec else []
    folders.append(str(Path(__file__).parents[2] / "configs"))
    return next(path for folder in folders if (path := Path(folder) / "strings.py").exists())


def split(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """(recipe, overrides): the recipe is the first argument where that is no option, else the embedded one."""
    if arguments and not arguments[0].startswith("-"):
        return Path(arguments[0]), list(arguments[1:])
    return default_recipe(), list(arguments)


def load(recipe: Path, overrides: Sequence[str] = ()) -> Config:
    """The recipe's config under the overrides; tyro exits with a suggestion on a misspelt field or value.

    Raises FileNotFoundError where there is no such recipe, and ValueError where it holds no config or a field is out
    of range.
    """
    if not recipe.is_file():
        known = sorted(path.name for path in default_recipe().parent.glob("[!_]*.py"))
        raise FileNotFoundError(f"recipe {str(recipe)!r} does not exist: give the path of a Python file that holds a "
                                f"`config` (in {default_recipe().parent} there are {', '.join(known)})")  # fmt: skip
    name = f"rljax_recipe_{recipe.stem}"
    spec = importlib.util.spec_from_file_location(name, recipe)
    if spec is None or spec.loader is None:
        raise ValueError(f"recipe {str(recipe)!r}: expected a Python file, name.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(recipe.absolute().parent))  # a recipe may import what lies beside it
    spec.loader.exec_module(module)
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise ValueError(f"recipe {str(recipe)!r}: config = {config!r}: expected a rljax.training.Config")
    command = f"{Path(sys.argv[0]).name} {recipe}"
    return tyro.cli(Config, default=config, args=list(overrides), prog=command, description=module.__doc__)


def describe(value) -> Any:
    """Any config as plain JSON: dataclasses as dictionaries, functions by name, with what is bound to them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, functools.partial):
        return {"function": describe(value.func), "bound": [*map(describe, value.args), describe(value.keywords)]}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if callable(value):
        closure = inspect.getclosurevars(value).nonlocals if inspect.isfunction(value) else {}
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return {"function": name, "bound": describe(closure)} if closure else name
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def differences(a, b, name: str = "") -> list[str]:
    """The fields in which two described configs differ, as `name: a -> b`."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(a.keys() | b.keys())
        return [d for key in keys for d in differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)]
    return [] if a == b else [f"{name}: {a!r} -> {b!r}"]
