"""BUILD names every module and test once, and each target declares what its files import."""

import ast
import functools
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]  # Bazel runs a link to this file: the checkout is where the link leads
RULES = {"py_binary", "py_library", "py_test"}
LIGHT = {"@pypi//jax", "@pypi//jaxtyping"}  # all that the losses and the kernels may need
DISTRIBUTION = {"orbax": "orbax_checkpoint", "tensorboardX": "tensorboardx"}  # where not named as the module


@dataclass(frozen=True)
class Target:
    rule: str
    srcs: tuple[str, ...]
    deps: tuple[str, ...]


def read(text: str) -> dict[str, Target]:
    """The Python targets of a BUILD file, by label."""
    calls = [node.value for node in ast.parse(text).body if isinstance(node, ast.Expr)]
    calls = [call for call in calls if isinstance(call, ast.Call) and ast.unparse(call.func) in RULES]
    kept = [[k for k in call.keywords if k.arg in {"name", "srcs", "deps"}] for call in calls]
    fields = [{str(k.arg): ast.literal_eval(k.value) for k in keywords} for keywords in kept]
    found = zip(calls, fields, strict=True)
    return {f":{f['name']}": Target(ast.unparse(c.func), tuple(f["srcs"]), tuple(f.get("deps", ()))) for c, f in found}


def reached(label: str, targets: dict[str, Target]) -> set[str]:
    """The label and all that it depends on, through any number of targets."""
    seen, todo = set(), [label]
    while todo:
        if (item := todo.pop()) not in seen:
            seen.add(item)
            todo += targets[item].deps if item in targets else ()
    return seen


@functools.cache
def files() -> frozenset[str]:
    """Every Python file that BUILD has to name."""
    found = [p for d in ("rljax", "pallas_kernels", "launch", "configs", "tests") for p in (ROOT / d).rglob("*.py")]
    return frozenset(p.relative_to(ROOT).as_posix() for p in found) - {"tests/run_pytest.py"}  # py_test adds that one


@functools.cache
def modules(file: str) -> frozenset[str]:
    """What a file needs to be imported: itself, and what it imports anywhere, `from a import b` as a.b."""
    found = {file.removesuffix(".py").replace("/", ".")}
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def homes(module: str, owners: dict[str, str]) -> set[str]:
    """The labels of the targets that hold a module and the packages around it; none for the standard library."""
    parts = module.split(".")
    paths = ["/".join(parts[:i]) for i in range(1, len(parts) + 1)]
    ours = {owners[p] for path in paths for p in (f"{path}.py", f"{path}/__init__.py") if p in owners}
    if ours or parts[0] in {*sys.stdlib_module_names, "configs", "launch", "tests"}:
        return ours
    return {f"@pypi//{DISTRIBUTION.get(parts[0], parts[0])}"}


def unnamed(targets: dict[str, Target]) -> list[str]:
    """Files that are not in exactly one target, and names that are no file."""
    named = Counter(source for target in targets.values() for source in target.srcs if source[0] != ":")
    wrong = [f"{file} is in {named[file]} targets" for file in sorted(files()) if named[file] != 1]
    return wrong + [f"{name} is no file" for name in sorted(named.keys() - files())]


def holders(targets: dict[str, Target]) -> dict[str, str]:
    """The label of each file's target, the recipes also under the name that the wheel gives them."""
    owners = {source: label for label, target in targets.items() for source in target.srcs}
    return owners | {f"rljax/{s}": label for s, label in owners.items() if s.startswith("configs/")}


def undeclared(targets: dict[str, Target]) -> list[str]:
    """Imports that no dependency of their target holds; py_test itself adds :tests."""
    owners, found = holders(targets), []
    for label, target in targets.items():
        known = reached(label, targets) | (reached(":tests", targets) if target.rule == "py_test" else set())
        needed = {(s, m, h) for s in target.srcs if s[0] != ":" for m in modules(s) for h in homes(m, owners)}
        found += [f"{label}: {s} needs {m} of {h}" for s, m, h in sorted(needed) if h not in known]
    return found


def heavy(targets: dict[str, Target]) -> list[str]:
    """What the core needs and must not: other packages, and rljax below the kernels."""
    outside = LIGHT | {":pallas_kernels"}
    found = [f":pallas_kernels needs {dep}" for dep in reached(":pallas_kernels", targets) - outside]
    return found + [f":rljax needs {dep}" for dep in reached(":rljax", targets) - outside - {":rljax"}]


def without(label: str, targets: dict[str, Target], **gone: str) -> dict[str, Target]:
    """The targets, one entry of a list fewer: `srcs=` or `deps=` that entry."""
    fewer = {field: tuple(item for item in getattr(targets[label], field) if item != e) for field, e in gone.items()}
    return {**targets, label: replace(targets[label], **fewer)}


@pytest.fixture(scope="module")
def targets() -> dict[str, Target]:
    return read((ROOT / "BUILD").read_text())


def test_every_file_is_named_once(targets):
    assert unnamed(targets) == []


def test_every_import_is_declared(targets):
    assert undeclared(targets) == []


def test_the_core_is_light(targets):
    assert heavy(targets) == []


def test_every_test_is_a_target(targets):
    tests = {f":{path.removesuffix('.py')}": (path,) for path in files() if path.endswith("_test.py")}
    assert tests == {label: target.srcs for label, target in targets.items() if target.rule == "py_test"}


def test_a_missing_file_is_noticed(targets):
    entries = [(label, source) for label, target in targets.items() for source in target.srcs if source[0] != ":"]
    assert len(entries) == len(files()) > 80
    for label, source in entries:
        assert unnamed(without(label, targets, srcs=source)) == [f"{source} is in 0 targets"]


def test_a_file_twice_and_a_file_that_is_gone_are_noticed(targets):
    core = targets[":rljax"]
    twice = {**targets, ":rljax": replace(core, srcs=(*core.srcs, "rljax/metrics.py"))}
    gone = {**targets, ":rljax": replace(core, srcs=(*core.srcs, "rljax/gone.py"))}
    assert unnamed(twice) == ["rljax/metrics.py is in 2 targets"]
    assert unnamed(gone) == ["rljax/gone.py is no file"]


@pytest.mark.parametrize(("core", "dep"), [
    (":rljax", "@pypi//flax"), (":pallas_kernels", "@pypi//optax"), (":pallas_kernels", ":rljax"),
])  # fmt: skip
def test_a_heavy_core_is_noticed(core, dep, targets):
    assert heavy({**targets, core: replace(targets[core], deps=(*targets[core].deps, dep))})


@pytest.mark.parametrize(("label", "dep"), [
    (":rljax", ":pallas_kernels"), (":rljax/models", "@pypi//flax"), (":launch", ":rljax/training"),
    (":tests/ratio_test", ":rljax"),
])  # fmt: skip
def test_an_undeclared_import_is_noticed(label, dep, targets):
    assert any(f" of {dep}" in defect for defect in undeclared(without(label, targets, deps=dep)))
