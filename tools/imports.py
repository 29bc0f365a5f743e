"""The Python files of the repository and what each imports: read from their source, nothing is run."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pallas_kernels", "rljax", "configs", "launch", "tests")


@functools.cache
def files(*folders: str) -> tuple[str, ...]:
    """Paths of the Python files of these folders, by default of all that hold the project's own code and tests."""
    found = (path for folder in folders or FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return tuple(sorted(path.relative_to(ROOT).as_posix() for path in found))


def module_of(file: str) -> str:
    """The name under which a file is imported; a package's is that of its `__init__.py`."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@functools.cache
def imported(file: str) -> frozenset[str]:
    """Names that a file imports, at its top or within a function: `from a import b` as a.b."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def owner(name: str, modules: dict[str, str]) -> str | None:
    """The file that an imported name is in: the longest prefix of the name that is one of the modules."""
    parts = name.removeprefix("rljax.").split(".") if name.startswith("rljax.configs") else name.split(".")
    prefixes = (".".join(parts[:i]) for i in range(len(parts), 0, -1))
    return next((modules[prefix] for prefix in prefixes if prefix in modules), None)


@functools.cache
def graph() -> dict[str, frozenset[str]]:
    """For each file the files that it imports; packages that are only on the path to it are left out."""
    modules = {module_of(file): file for file in files()}
    found = {file: {owner(name, modules) for name in imported(file)} for file in files()}
    return {file: frozenset(x for x in needed if x and x != file) for file, needed in found.items()}
