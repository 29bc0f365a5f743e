"""Mutation tests: one-line faults from tests/mutants.toml that the test suite should detect.

`make mutants` applies each mutant to a copy of the repository, runs the test files that import the mutated file until
a test fails, and lists the undetected mutants. `python -m tools.mutants TEXT` selects the mutants that contain TEXT.
"""

import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tools.imports import ROOT, files, graph

MUTANTS = ROOT / "tests/mutants.toml"
JOBS, SECONDS = 2, 600  # parallel copies; time limit per mutant


class Mutant(NamedTuple):
    file: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.file}: {self.old.strip()}  ->  {self.new.strip()}"


def read() -> list[Mutant]:
    return [Mutant(**entry) for entry in tomllib.loads(MUTANTS.read_text(encoding="utf-8"))["mutant"]]


def importing_tests(file: str) -> list[str]:
    """Test files that import a file, directly or indirectly, ordered by similarity of name, then by import distance."""
    importers = {other: [f for f, needed in graph().items() if other in needed] for other in files()}
    distance, todo = {file: 0}, deque([file])
    while todo:
        here = todo.popleft()
        for other in importers[here]:
            if other not in distance:
                distance[other] = distance[here] + 1
                todo.append(other)
    words = set(re.split(r"[/_.]", file)) - {"rljax", "pallas", "kernels", "training", "py", ""}

    def order(test: str):
        return -len(words & set(re.split(r"[/_.]", test))), distance[test], test

    return sorted((test for test in distance if test.endswith("_test.py")), key=order)


def run(mutant: Mutant, copy: Path) -> tuple[str, str, float]:
    """(verdict, failed test, seconds) of a mutant in a copy of the repository."""
    path, started = copy / mutant.file, time.monotonic()
    original = path.read_text(encoding="utf-8")
    path.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-xq", "-m", "not slow", *importing_tests(mutant.file)]
    failed = ""
    try:
        done = subprocess.run(command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, timeout=SECONDS,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")  # fmt: skip
        failed = next(iter(re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)), "")
        verdict = "survived" if done.returncode == 0 else "killed" if failed else f"pytest ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        verdict = "timed out"
    path.write_text(original, encoding="utf-8")
    return verdict, failed, time.monotonic() - started


def copies(folder: Path) -> queue.Queue:
    """Copies of the files that git does not ignore; the copies share a compilation cache."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    made = queue.Queue()
    for i in range(JOBS):
        copy = folder / str(i)
        for file in filter(lambda file: (ROOT / file).is_file(), listed.stdout.split("\n")):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, copy / file)
        (ROOT / ".cache").mkdir(exist_ok=True)
        (copy / ".cache").symlink_to(ROOT / ".cache")
        made.put(copy)
    return made


def main(wanted: str) -> int:
    chosen, started = [mutant for mutant in read() if wanted in str(mutant)], time.monotonic()
    if not chosen:
        sys.exit(f"TEXT = {wanted!r}: expected text that occurs in a mutant of {MUTANTS}")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(JOBS) as pool:
        free = copies(Path(folder))

        def tried(mutant: Mutant) -> str:
            copy = free.get()
            verdict, failed, seconds = run(mutant, copy)
            free.put(copy)
            print(f"{verdict:8} {seconds:4.0f} s  {mutant}{f'  by {failed}' if failed else ''}", flush=True)
            return verdict

        verdicts = list(pool.map(tried, chosen))
    missed = [mutant for mutant, verdict in zip(chosen, verdicts, strict=True) if verdict != "killed"]
    minutes = (time.monotonic() - started) / 60
    print(f"\n{len(chosen)} mutants in {minutes:.1f} minutes (budget of all: 20), {len(missed)} not killed")
    print("".join(f"  {mutant}\n" for mutant in missed), end="")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
