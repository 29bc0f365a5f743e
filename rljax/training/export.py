"""The newest parameters of a run, and their export as a Hugging Face folder."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from rljax.models import MeshConfig, Model, Params, PretrainedModel, make_mesh, without_value_head
from rljax.models.decoder import Decoder, Precision
from rljax.text import TextTokenizer, load_tokenizer
from rljax.training import recipe
from rljax.training.checkpoint.compatibility import TOKENIZER, read_params
from rljax.training.checkpoint.folder import RunFolder
from rljax.training.config import Config
from rljax.training.errors import RunError, disk_is_full


class Trained(NamedTuple):
    """A trained model, its parameters without the value head, and its tokenizer."""

    model: Model
    params: Params
    tokenizer: TextTokenizer


def load_run(run: Path, overrides: Sequence[str] = (), *, mesh: Mesh | None = None) -> Trained:
    """The model, parameters and tokenizer of a run's newest checkpoint, without the task's data.

    `overrides` are command-line options of the recipe, such as the new folder of a pretrained model that was moved.
    `mesh` is by default the largest number of local devices that can share the parameters without sharding rows.

    Raises FileNotFoundError if the folder holds no run, and RunError if the run has no readable checkpoint or was
    trained with another model or tokenizer.
    """
    trained, _ = _load(run, _config(run, overrides), mesh)
    return trained


def export_run(run: Path, out: Path, *, dtype: Precision | None = None, overrides: Sequence[str] = ()) -> str:
    """Writes a run's newest parameters and its tokenizer as a Hugging Face folder; returns a summary of the folder.

    Args:
      run: Folder of the run.
      out: Folder to write, which must not exist or must be empty.
      dtype: Dtype of the weights in the folder, by default that of the parameters.
      overrides: Command-line options of the recipe, as in `load_run`.

    Returns:
      A text for the terminal: what was exported, and the commands that use the folder.

    Raises:
      ValueError: If `out` is a file or a folder that is not empty, or if no Hugging Face architecture equals the model.
      FileNotFoundError, RunError: As in `load_run`, and RunError if the disk is full; then nothing is written.
    """
    from rljax.models import save  # needs the extra `hf`

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out = {str(out)!r}: expected a folder that does not exist or is empty")
    config = _config(run, overrides)
    trained, record = _load(run, config, None)
    if not isinstance(trained.model, Decoder):
        raise ValueError(f"model = {config.model!r}: expected a TransformerConfig or a PretrainedModel to export")
    like = config.model.folder if isinstance(config.model, PretrainedModel) else None
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # from an interrupted export
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save(partial, trained.model, trained.params, like=like, dtype=dtype)
        trained.tokenizer.save(partial)
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if disk_is_full(error):
            raise RunError(f"disk full while exporting to {out}: nothing was written there. Free some space and run "
                           "the same command again") from error  # fmt: skip
        raise
    return _summary(run, out, record)


def _config(run: Path, overrides: Sequence[str]) -> Config:
    chosen, own = RunFolder.command(run)
    return recipe.load(chosen, [*own, *overrides])


def _load(run: Path, config: Config, mesh: Mesh | None) -> tuple[Trained, dict]:
    where = f"run = {str(run)!r}"
    untrained = RunError(f"{where} has no checkpoint yet: train the run first")
    if not (run / TOKENIZER).is_dir():
        raise untrained
    tokenizer = load_tokenizer(run / TOKENIZER)

    def build(value_head: bool) -> Model:
        return config.model.build(vocab_size=tokenizer.vocab_size, value_head=value_head, rules=config.sharding)

    saved = build("values" in config.needs)
    abstract = saved.abstract_params(_mesh(saved) if mesh is None else mesh)
    restored = read_params(run / "checkpoints", abstract, tokenizer, where)
    if restored is None:
        raise untrained
    return Trained(build(False), without_value_head(restored.tree["params"]), tokenizer), restored.record


def _mesh(model: Model) -> Mesh:
    """The largest number of local devices along `tensor` that divides the parameters; rows are not sharded."""
    devices = jax.local_devices()
    for count in range(len(devices), 1, -1):
        mesh = make_mesh(MeshConfig(data=1, tensor=count), devices[:count])
        try:
            model.abstract_params(mesh)
        except ValueError:
            continue
        return mesh
    return make_mesh(MeshConfig(data=1), devices[:1])


def _summary(run: Path, out: Path, record: dict) -> str:
    lines = [f"{out}: the model of {run} after {record['phase']} step {record['step']}. To use it:",
             f"  python launch/chat.py {out}",
             f"  vllm serve {out}"]  # fmt: skip
    if (out / "tokenizer.json").is_file():
        loaded = ", ".join(f'{kind}.from_pretrained("{out}")' for kind in ("AutoModelForCausalLM", "AutoTokenizer"))
        return "\n".join([*lines, f"  transformers: {loaded}"])
    return "\n".join([*lines[:2], "  (its tokenizer is the SentencePiece model in tokenizer.model)"])
