"""Recipes: Python files that define `config`, whose fields the command line can override."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from rljax._expression import shown
from rljax.training.config import Config


def _cannot_be_parsed(arguments: list[str]) -> Any:
    raise ValueError(f"{arguments[0]!r}: expected a function in the recipe, not on the command line")


_AS_IT_PRINTS = PrimitiveConstructorSpec(  # so that --help shows a function as one field
    nargs=1,
    metavar="",
    instance_from_str=_cannot_be_parsed,
    is_instance=lambda value: True,
    str_from_instance=lambda value: [shown(value)],
)
_REGISTRY = ConstructorRegistry()


@_REGISTRY.primitive_rule
def _fixed_in_recipe(field: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Keeps tyro from reading the signature of a function, which raises an error for a jitted function."""
    return _AS_IT_PRINTS if tyro.conf.Fixed in field.markers else None


def default_recipe() -> Path:
    """Path of the default recipe, `configs/strings.py`, in a checkout or an installed wheel."""
    spec = importlib.util.find_spec("rljax.configs")
    folders = list(spec.submodule_search_locations or []) if spec else []
    folders.append(str(Path(__file__).parents[2] / "configs"))
    return next(path for folder in folders if (path := Path(folder) / "strings.py").exists())


def split(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """(recipe, overrides): the recipe is the first argument, or the default recipe if that argument is an option."""
    if arguments and not arguments[0].startswith("-"):
        return Path(arguments[0]), list(arguments[1:])
    return default_recipe(), list(arguments)


def load(recipe: Path, overrides: Sequence[str] = ()) -> Config:
    """Loads a recipe's config and applies `overrides`; exits with a suggestion if a field or a value is misspelled.

    Raises FileNotFoundError if the recipe does not exist, and ValueError if it defines no config or a field is invalid.
    """
    if not recipe.is_file():
        known = sorted(path.name for path in default_recipe().parent.glob("[!_]*.py"))
        raise FileNotFoundError(f"recipe = {str(recipe)!r} does not exist: expected the path of a Python file that "
                                f"defines `config`, such as one in {default_recipe().parent}: "
                                f"{', '.join(known)}")  # fmt: skip
    name = f"rljax_recipe_{recipe.stem}"
    spec = importlib.util.spec_from_file_location(name, recipe)
    if spec is None or spec.loader is None:
        raise ValueError(f"recipe = {str(recipe)!r}: expected a Python file, name.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(recipe.absolute().parent))  # a recipe may import modules from its own folder
    spec.loader.exec_module(module)
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise ValueError(f"recipe = {str(recipe)!r}: config = {config!r}: expected an rljax.training.Config")
    command = f"{Path(sys.argv[0]).name} {recipe}"
    return tyro.cli(Config, default=config, args=list(overrides), prog=command, description=module.__doc__,
                    registry=_REGISTRY)  # fmt: skip
