"""Recipes: Python files that hold a `config`, overridden field by field on the command line."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from rljax.training.config import Config


def default_recipe() -> Path:
    """The embedded recipe: `configs/strings.py`, also when installed from a wheel."""
    spec = importlib.util.find_spec("rljax.configs")
    folders = list(spec.submodule_search_locations or []) if spec else []
    folders.append(str(Path(__file__).parents[2] / "configs"))
    return next(path for folder in folders if (path := Path(folder) / "strings.py").exists())


def split(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """(recipe, overrides): the recipe is the first argument unless that is an option, else the embedded one."""
    if arguments and not arguments[0].startswith("-"):
        return Path(arguments[0]), list(arguments[1:])
    return default_recipe(), list(arguments)


def load(recipe: Path, overrides: Sequence[str] = ()) -> Config:
    """The recipe's config under the overrides; tyro exits with a suggestion on a misspelled field or value.

    Raises FileNotFoundError if there is no such recipe, and ValueError if it holds no config or a field is out of
    range.
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
