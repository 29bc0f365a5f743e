"""Python files of the repository and the imports of each file, parsed from the source."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pallas_kernels", "rljax", "configs", "launch", "tests")


@functools.cache
def files(*folders: str) -> tuple[str, ...]:
    """Paths of the Python files in these folders; default: FOLDERS."""
    found = (path for folder in folders or FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return tuple(sorted(path.relative_to(ROOT).as_posix() for path in found))


def module_of(file: str) -> str:
    """Module name of a file; an `__init__.py` has the name of its package."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@functools.cache
def imported(file: str) -> frozenset[str]:
    """Names that a file imports, also inside functions; `from a import b` imports a.b."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def owner(name: str, modules: dict[str, str]) -> str | None:
    """The file of the longest prefix of an imported name in `modules`."""
    parts = name.removeprefix("rljax.").split(".") if name.startswith("rljax.configs") else name.split(".")
    prefixes = (".".join(parts[:i]) for i in range(len(parts), 0, -1))
    return next((modules[prefix] for prefix in prefixes if prefix in modules), None)


@functools.cache
def graph() -> dict[str, frozenset[str]]:
    """The files that each file imports, without the parent packages of the imported modules."""
    modules = {module_of(file): file for file in files()}
    found = {file: {owner(name, modules) for name in imported(file)} for file in files()}
    return {file: frozenset(x for x in needed if x and x != file) for file, needed in found.items()}
