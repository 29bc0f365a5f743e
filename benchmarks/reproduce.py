"""Results of the string task: 3 seeds of RL, rejection fine-tuning and the permuted-reward control, in one table.

`make reproduce`, or `python benchmarks/reproduce.py [FOLDER]`. Two runs train at a time, since one run keeps little
more than one core busy. If interrupted, repeat the command: runs resume. FOLDER/table.md holds the table, too.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
BESIDE = {"rft": "RFT", "control": "control"}
TARGET = "level 2 held-out pairs"
LEVELS = ("level 1", "level 2 trained pairs", TARGET, "level 2 held-out functions", "level 3", "level 4")


def train(recipe: str, run: Path, *overrides: str) -> dict:
    """Trains a recipe in its run folder, unless it is finished, and returns its evaluations."""
    command = [sys.executable, str(ROOT / "launch/tpu_train.py"), str(ROOT / f"configs/{recipe}.py"), "--run", str(run)]
    run.parent.mkdir(parents=True, exist_ok=True)
    log, started = run.with_suffix(".log"), time.time()
    print(f"{recipe}: {run} (its output is in {log})", flush=True)
    with open(log, "a", encoding="utf-8") as output:
        done = subprocess.run([*command, *overrides], stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "".join(log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-5:])
        print(f"{recipe}: {run} failed:\n{tail}", flush=True)
        os._exit(1)  # at once, without waiting for the queued runs
    print(f"{recipe}: {run} took {(time.time() - started) / 60:.1f} minutes", flush=True)
    return json.loads((run / "evaluations.json").read_text(encoding="utf-8"))


def train_all(folder: Path) -> dict[int, dict[str, dict]]:
    """{seed: {recipe: evaluations}}; the recipes in BESIDE start from stage 1 of the RL run with the same seed."""
    with ThreadPoolExecutor(2) as pool:
        runs: dict[int, dict[str, Future]] = {
            seed: {"strings": pool.submit(train, "strings", folder / f"seed{seed}/rl", "--seed", str(seed))}
            for seed in SEEDS
        }
        for seed in SEEDS:
            runs[seed]["strings"].result()
            for name in BESIDE:
                start = ("--seed", str(seed), "--start-from", str(folder / f"seed{seed}/rl"))
                runs[seed][name] = pool.submit(train, name, folder / f"seed{seed}/{name}", *start)
        return {seed: {name: run.result() for name, run in of_seed.items()} for seed, of_seed in runs.items()}


def cell(figures: dict, level: str, name: str = "pass@1") -> str:
    value, low, high = figures[level][name]
    return f"{100 * value:.1f} ± {50 * (high - low):.1f}"


def row(seed: int, label: str, figures: dict, before: dict | None) -> str:
    gain = "" if before is None else f"{100 * (figures[TARGET]['pass@1'][0] - before[TARGET]['pass@1'][0]):+.1f}"
    at_target = [cell(figures, TARGET, name) for name in ("right chain", "greedy", "pass@8")]
    return "| " + " | ".join([str(seed), label, *(cell(figures, level) for level in LEVELS), *at_target, gain]) + " |"


def table(results: dict[int, dict[str, dict]]) -> str:
    head = ["seed", "run", *LEVELS, "right chain", "greedy", "pass@8", "gain"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for seed, runs in results.items():
        before = runs["strings"]["before RL"]
        lines += [row(seed, "stage 1", before, None), row(seed, "RL", runs["strings"]["after RL"], before)]
        lines += [row(seed, label, runs[name]["after RL"], before) for name, label in BESIDE.items()]
    return "\n".join(lines)


def main() -> None:
    folder, started = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs/reproduce", time.time()
    made = table(train_all(folder))
    (folder / "table.md").write_text(made + "\n", encoding="utf-8")
    print(f"\npass@1 in percent ± half a 95 % interval; last four columns: {TARGET}, gain in points\n\n{made}")
    print(f"\nThis call took {(time.time() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
