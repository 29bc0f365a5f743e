"""Writes a Bazel package for each distribution in the environment of this Python: `venv_hub.py FOLDER`."""

import sys
import sysconfig
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SITE = Path(sysconfig.get_path("purelib"))
BUILD = """\
package(default_visibility = ["//visibility:public"])

py_library(name = "files", data = {files}, imports = ["site"])

py_library(name = "{name}", deps = {deps})
"""


def label(name: str) -> str:
    return canonicalize_name(name).replace("-", "_")


def needs(dist: Distribution, extras: frozenset[str]) -> list[Requirement]:
    """The requirements of a distribution with these extras on this machine."""
    found = map(Requirement, dist.requires or [])
    return [r for r in found if not r.marker or any(r.marker.evaluate({"extra": e}) for e in {"", *extras})]


def closure(name: str, installed: dict[str, Distribution]) -> set[str]:
    """A distribution and its transitive requirements, as a flat set because extras can create cycles."""
    seen, todo = set(), [(name, frozenset())]
    while todo:
        if (item := todo.pop()) in seen or item[0] not in installed:
            continue
        seen.add(item)
        todo += [(label(r.name), frozenset(r.extras)) for r in needs(installed[item[0]], item[1])]
    return {name for name, _ in seen}


def top_level(dist: Distribution) -> list[str]:
    """Top-level files and folders of a distribution in site-packages."""
    names = {path.parts[0] for path in dist.files or [] if path.parts[0] not in {"..", "__pycache__"}}
    return sorted(name for name in names if (SITE / name).exists())


def write(folder: Path, name: str, installed: dict[str, Distribution]) -> None:
    """Writes FOLDER/name with links to the files of a distribution and a BUILD file."""
    site = folder / name / "site"
    site.mkdir(parents=True)
    files = top_level(installed[name])
    for entry in files:
        (site / entry).symlink_to(SITE / entry)
    deps = [f"//{other}:files" for other in sorted(closure(name, installed))]
    build = BUILD.format(name=name, files=[f"site/{entry}" for entry in files], deps=deps)
    (site.parent / "BUILD").write_text(build, encoding="utf-8")


if __name__ == "__main__":
    installed = {label(dist.name): dist for dist in distributions(path=[str(SITE)])}
    del installed["rljax_llm"]  # the targets of this repository are in BUILD
    for name in installed:
        write(Path(sys.argv[1]), name, installed)
