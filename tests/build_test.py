"""BUILD names every module and test once, and each target declares what its files import."""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]  # Bazel runs a link to this file: the checkout is where the link leads
TEXT = (ROOT / "BUILD").read_text()
RULES = {"py_binary", "py_library", "py_test"}
CORE = {"rljax": {"@pypi//jax", "@pypi//jaxtyping"}, "pallas_kernels": {"@pypi//jax", "@pypi//jaxtyping"}}
DISTRIBUTION = {"orbax": "orbax_checkpoint", "tensorboardX": "tensorboardx"}  # where not named as the module


@dataclass(frozen=True)
class Target:
    rule: str
    name: str
    srcs: tuple[str, ...]
    deps: tuple[str, ...]


def read(text: str) -> dict[str, Target]:
    """The Python targets of a BUILD file, by label."""
    calls = [node.value for node in ast.parse(text).body if isinstance(node, ast.Expr)]
    calls = [call for call in calls if isinstance(call, ast.Call) and ast.unparse(call.func) in RULES]
    fields = [{k.arg: ast.literal_eval(k.value) for k in call.keywords} for call in calls]
    return {
        f":{f['name']}": Target(ast.unparse(c.func), f["name"], tuple(f.get("srcs", ())), tuple(f.get("deps", ())))
        for c, f in zip(calls, fields, strict=True)
    }


def reached(label: str, targets: dict[str, Target]) -> set[str]:
    """The label and all that it depends on, through any number of targets."""
    seen, todo = set(), [label]
    while todo:
        if (item := todo.pop()) not in seen:
            seen.add(item)
            todo += targets[item].deps if item in targets else ()
    return seen


def files() -> set[str]:
    """Every Python file that BUILD has to name."""
    found = [p for d in ("rljax", "pallas_kernels", "launch", "configs", "tests") for p in (ROOT / d).rglob("*.py")]
    return {p.relative_to(ROOT).as_posix() for p in found} - {"tests/run_pytest.py"}  # which py_test itself adds


def modules(file: str) -> Iterator[str]:
    """What a file needs to be imported: itself, and what it imports anywhere, `from a import b` as a.b."""
    yield file.removesuffix(".py").replace("/", ".")
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


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
    named = Counter(s for t in targets.values() for s in t.srcs if not s.startswith(":"))
    return [
        f"{f} is in {named[f]} targets" for f in sorted(files() | named.keys()) if named[f] != 1 or f not in files()
    ]


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
    """Packages below the core that users of the losses alone would have to install, and rljax below the kernels."""
    found = [f"{n} needs {d}" for n, light in CORE.items() for d in reached(f":{n}", targets) - light if d[0] == "@"]
    return found + [d for d in reached(":pallas_kernels", targets) if d.startswith(":rljax")]


def defects(text: str) -> list[str]:
    targets = read(text)
    mismatched = [t.name for t in targets.values() if t.rule == "py_test" and (f"{t.name}.py",) != t.srcs]
    return unnamed(targets) + undeclared(targets) + heavy(targets) + mismatched


def test_build_is_complete_and_true():
    assert defects(TEXT) == []


def test_every_test_is_a_target():
    tests = {f":{path.removesuffix('.py')}" for path in files() if path.endswith("_test.py")}
    assert tests == {label for label, t in read(TEXT).items() if t.rule == "py_test"}


@pytest.mark.parametrize("source", sorted(files()))
def test_a_missing_file_is_noticed(source):
    assert f"{source} is in 0 targets" in unnamed(
        read(TEXT.replace(f'"{source}",', "", 1).replace(f'["{source}"]', "[]", 1))
    )


def test_a_file_twice_and_a_file_that_is_gone_are_noticed():
    assert unnamed(read(TEXT.replace('"rljax/ratio.py",', '"rljax/ratio.py", "rljax/ratio.py",', 1)))
    assert unnamed(read(TEXT.replace('"rljax/ratio.py",', '"rljax/ratio.py", "rljax/gone.py",', 1)))


@pytest.mark.parametrize("label", [":rljax", "@pypi//flax", "@pypi//optax"])
def test_a_heavy_core_is_noticed(label):
    targets = read(TEXT)
    for name in CORE:
        changed = Target("py_library", name, targets[f":{name}"].srcs, (*targets[f":{name}"].deps, label))
        assert heavy({**targets, f":{name}": changed}) or (name, label) == ("rljax", ":rljax")


def test_an_undeclared_import_is_noticed():
    targets = read(TEXT)
    for name, needs in {"rljax": ":pallas_kernels", "rljax/models": "@pypi//flax", "launch": ":rljax/training"}.items():
        target = targets[f":{name}"]
        fewer = Target(target.rule, name, target.srcs, tuple(d for d in target.deps if d != needs))
        assert undeclared({**targets, f":{name}": fewer})
