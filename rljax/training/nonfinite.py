"""Stops a run on a loss or gradient that is not finite, and saves the batch."""

from pathlib import Path

import jax
import numpy as np

from rljax.training.errors import RunError


def require_finite(metrics: dict[str, float], phase: str, step: int, batch, folder: Path) -> None:
    """Raises RunError on a NaN or infinite loss or gradient, after saving the step's batch for inspection.

    A rollout without an optimizer step (`optimizer_steps` is 0) has no gradient.
    """
    names = ("loss", "grad_norm") if metrics.get("optimizer_steps", 1) else ("loss",)
    bad = [name for name in names if not np.isfinite(metrics[name])]
    if not bad:
        return
    path = folder / "nonfinite" / f"{phase}-{step}.npz"
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        leaves = {jax.tree_util.keystr(name): np.asarray(x) for name, x in jax.tree_util.tree_leaves_with_path(batch)}
        np.savez(path, allow_pickle=False, **leaves)
    values = ", ".join(f"{name} = {metrics[name]}" for name in bad)
    raise RunError(
        f"{phase} step {step}: {values}. The step's batch is in {path}, and the last good checkpoint is kept. The same "
        "command would come to the same step: look at the batch, and start another run, at a lower learning rate say, "
        f"by --run FOLDER{'' if phase == 'likelihood' else f' --start-from {folder}'}"
    )
