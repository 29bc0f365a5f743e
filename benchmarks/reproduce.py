"""The string task's result: 3 seeds of RL, rejection fine-tuning and the permuted-reward control, in one table.

`make reproduce`, or `python benchmarks/reproduce.py [FOLDER]`. Each run goes on from where it stands: the command may
be interrupted and given again. Ends with a table in Markdown, printed and written to FOLDER/table.md.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
TARGET = "level 2 held-out pairs"
LEVELS = ("level 1", "level 2 trained pairs", TARGET, "level 2 held-out functions", "level 3", "level 4")


def train(recipe: str, run: Path, *overrides: str) -> dict:
    """Trains a recipe in its folder (nothing where that is done), and returns its evaluations."""
    command = [sys.executable, str(ROOT / "launch/tpu_train.py"), str(ROOT / f"configs/{recipe}.py"), "--run", str(run)]
    print(f"\n{recipe}: {run}", flush=True)
    subprocess.run([*command, *overrides], check=True)
    return json.loads((run / "evaluations.json").read_text())


def cell(figures: dict, level: str, name: str = "pass@1") -> str:
    value, low, high = figures[level][name]
    return f"{100 * value:.1f} ± {50 * (high - low):.1f}"


def rows(seed: int, name: str, evaluations: dict, first: bool) -> list[str]:
    """Table rows of one run: before (once a seed) and after."""
    lines = []
    for moment in ("before RL", "after RL") if first else ("after RL",):
        figures = evaluations[moment]
        label = "stage 1" if moment == "before RL" else name
        gain = 100 * (figures[TARGET]["pass@1"][0] - evaluations["before RL"][TARGET]["pass@1"][0])
        gained = "" if moment == "before RL" else f"{gain:+.1f}"
        at_target = [cell(figures, TARGET, name) for name in ("right chain", "greedy", "pass@8")]
        cells = [str(seed), label, *(cell(figures, level) for level in LEVELS), *at_target, gained]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs/reproduce"
    started, lines = time.time(), []
    for seed in SEEDS:
        chosen = ("--seed", str(seed))
        rl = folder / f"seed{seed}" / "rl"
        lines += rows(seed, "RL", train("strings", rl, *chosen), first=True)
        for name in ("rft", "control"):
            run = folder / f"seed{seed}" / name
            lines += rows(seed, name, train(name, run, *chosen, "--start-from", str(rl)), first=False)
    head = ["seed", "run", *LEVELS, "right chain", "greedy", "pass@8", "gain"]
    table = "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines])
    (folder / "table.md").write_text(table + "\n")
    print(f"\npass@1 in percent ± half a 95 % interval; the last four columns: {TARGET}, the gain in points\n\n{table}")
    print(f"\n{(time.time() - started) / 60:.1f} minutes in this call")


if __name__ == "__main__":
    main()
