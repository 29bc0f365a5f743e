"""Generator of the Bazel file BUILD from the imports of the Python files: `make generate`."""

import re
import sys
from collections import defaultdict
from pathlib import PurePosixPath

from tools.imports import FOLDERS, ROOT, files, graph, imported

TRAINER = ("_entry_points", "models", "rollout", "tasks", "text", "training")  # parts of rljax with separate targets
DISTRIBUTION = {"orbax": "orbax_checkpoint", "tensorboardX": "tensorboardx"}  # names that differ from the module
UNSEEN = {  # dependencies that are not imported
    ":rljax/tasks": ("@pypi//array_record", "@pypi//importlib_resources"),  # required by tensorflow_datasets
    ":tests/examples_test": ("@pypi//flax", "@pypi//optax"),  # required by the scripts that the test runs
    ":tests/training": (":configs", ":launch"),  # required by the processes that the tests start
}
READ = ("benchmarks", "examples", "tools")  # folders of scripts; a test that names a folder reads its files
HEAD = '''"""One target per package and per test (docs/bazel.md). Written by `make generate`: do not edit."""

load("@rules_python//python:defs.bzl", "py_library")
load("//:tools/bazel/py_test.bzl", "py_test")

package(default_visibility = ["//visibility:public"])

genrule(
    name = "recipes_in_rljax",  # the name that the wheel gives them (pyproject.toml)
    srcs = glob(["configs/*.py"]),
    outs = ["rljax/" + recipe for recipe in glob(["configs/*.py"])],
    cmd = "cp $(SRCS) $(RULEDIR)/rljax/configs/",
)
'''


def is_test(file: str) -> bool:
    return file.endswith("_test.py")


def target_of(file: str) -> str:
    path = PurePosixPath(file)
    if is_test(file):
        return f":{path.with_suffix('')}"
    if path.parts[0] == "rljax":
        part = path.parts[1].removesuffix(".py")
        return f":rljax/{part}" if part in TRAINER else ":rljax"
    return f":{path.parent}" if path.parts[0] == "tests" else f":{path.parts[0]}"


def dependencies(file: str) -> set[str]:
    ours = {target_of(needed) for needed in graph()[file]}
    modules = {name.split(".")[0] for name in imported(file)} - {*sys.stdlib_module_names, *FOLDERS, *READ}
    return ours | {f"@pypi//{DISTRIBUTION.get(module, module)}" for module in modules}


def rule(label: str, sources: list[str]) -> str:
    deps = set().union(*map(dependencies, sources), UNSEEN.get(label, ())) - {label}
    fields = {"name": label[1:]}
    kind = "py_test" if is_test(sources[0]) else "py_library"
    if kind == "py_test":
        deps -= {":tests"}  # added by py_test
        text = (ROOT / sources[0]).read_text(encoding="utf-8")
        fields |= {"size": "large"} if "mark.slow" in text else {}
        fields |= {"tags": ["external"]} if "tools.imports" in text else {}  # reads the checkout: never cached
        data = [f"glob:{folder}/*.py" for folder in READ if re.search(rf"(?<![\w.]){folder}(?=[/\".])", text)]
        own = PurePosixPath(sources[0]).parent / "fixtures"
        fields |= {"data": [*data, *([f"glob:{own}/**"] if (ROOT / own).is_dir() else [])]}
    fields |= {"srcs": [*sources, ":recipes_in_rljax"] if label == ":configs" else sources, "deps": sorted(deps)}
    lines = "".join(f"    {name} = {_starlark(value)},\n" for name, value in fields.items() if value)
    return f"\n{kind}(\n{lines})\n"


def _starlark(value: str | list[str]) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if value[0].startswith("glob:"):
        return f"glob({_starlark([pattern.removeprefix('glob:') for pattern in value])})"
    if len(value) == 1:
        return f'["{value[0]}"]'
    return "[\n" + "".join(f'        "{item}",\n' for item in value) + "    ]"


def text() -> str:
    targets = defaultdict(list)
    for file in files():
        if file != "tests/run_pytest.py":  # added by py_test
            targets[target_of(file)].append(file)
    ordered = sorted(targets, key=lambda label: (is_test(targets[label][0]), label))
    return HEAD + "".join(rule(label, targets[label]) for label in ordered)


if __name__ == "__main__":
    (ROOT / "BUILD").write_text(text(), encoding="utf-8")
