"""The commands that train, evaluate, export and chat."""

import argparse
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from rljax.training import recipe
from rljax.training.checkpoint.folder import RunFolder, read_json
from rljax.training.errors import RunError, disk_is_full
from rljax.training.processes import join_workers
from rljax.training.terminal import escaped

_FOR_A_PERSON = (ValueError, FileNotFoundError, NotADirectoryError, RunError)


def train(arguments: Sequence[str] | None = None) -> None:
    """`rljax-train [RECIPE] [--field value …]`: trains a recipe, resuming its run from the newest checkpoint."""
    _as_command(_train, sys.argv[1:] if arguments is None else arguments)


def evaluate(arguments: Sequence[str] | None = None) -> None:
    """`rljax-evaluate RUN [--field value …]`: evaluates a run's newest checkpoint on the held-out problems."""
    _as_command(_evaluate, sys.argv[1:] if arguments is None else arguments)


def export(arguments: Sequence[str] | None = None) -> None:
    """`rljax-export RUN --out FOLDER [--dtype DTYPE]`: writes a run's newest parameters as a Hugging Face folder."""
    _as_command(_export, sys.argv[1:] if arguments is None else arguments)


def chat(arguments: Sequence[str] | None = None) -> None:
    """`rljax-chat FOLDER_OR_RUN [--option value …]`: talks to a model in the terminal."""
    _as_command(_chat, sys.argv[1:] if arguments is None else arguments)


def _as_command(command: Callable[[list[str]], None], arguments: Sequence[str]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # printing é must not fail in an ASCII locale
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs warnings about things that we do on purpose
    try:
        command(list(arguments))
    except Exception as error:
        _tell(error)
        code = getattr(error, "exit_code", 1)
        if jax.distributed.is_initialized():
            os._exit(code)  # a normal exit would wait for the other processes forever
        sys.exit(code)


def _tell(error: Exception) -> None:
    """Prints the message of an expected error, and the traceback of any other error or if RLJAX_TRACEBACK is set."""
    expected = isinstance(error, _FOR_A_PERSON) or disk_is_full(error) or _names_an_extra(error)
    if os.environ.get("RLJAX_TRACEBACK") or not expected:
        traceback.print_exception(error)
    elif disk_is_full(error) and not isinstance(error, RunError):
        print(
            f"error: disk full ({escaped(str(error))}): free some space and run the same command again", file=sys.stderr
        )
    else:
        hint = "" if isinstance(error, RunError) else " (set RLJAX_TRACEBACK=1 to see the traceback)"
        print(f"error: {escaped(str(error))}{hint}", file=sys.stderr)
    sys.stderr.flush()


def _names_an_extra(error: Exception) -> bool:
    return isinstance(error, ImportError) and "pip install 'rljax-llm[" in str(error)


def _train(arguments: list[str]) -> None:
    chosen, overrides = recipe.split(arguments)
    join_workers()  # first, because a recipe may use JAX devices
    config = recipe.load(chosen, overrides)
    from rljax.training.components import make_components  # after joining, because these modules may initialize devices
    from rljax.training.report.monitor import Monitor
    from rljax.training.run import Run

    folder = RunFolder(config.run)
    if jax.process_index() == 0:
        folder.hold()
        folder.claim(config, chosen, overrides)
    done = read_json(config.run / "finished.json", {}).get("steps", -1)
    if done >= config.steps:
        if jax.process_index() == 0:
            print(f"This run is finished ({done} rollouts). Its report is {config.run / 'report.html'}\n"
              "Start another run with --run FOLDER (and another --seed), or continue with more --steps.")  # fmt: skip
        return
    parts = make_components(config)
    with Monitor(config, parts.data.headline) as monitor:
        Run(config, parts, monitor).train()
        report = monitor.finish()
    if jax.process_index() == 0:
        print(f"report: {report}")


def _evaluate(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"arguments = {arguments!r}: expected `rljax-evaluate RUN [--field value …]`, where RUN is "
                         "the folder of a training run; `rljax-evaluate RUN --help` lists the fields")  # fmt: skip
    run = Path(arguments[0])
    chosen, overrides = RunFolder.command(run)
    join_workers()
    config = recipe.load(chosen, [*overrides, *arguments[1:], "--run", str(run)])
    from rljax.training.evaluation.command import evaluate_run

    evaluate_run(config)


def _export(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="rljax-export", allow_abbrev=False, description="Writes a run's newest parameters and its tokenizer as a "
        "Hugging Face folder, which transformers, vLLM and `launch/chat.py` read. Further options override fields of "
        "the recipe, such as --model.folder.")  # fmt: skip
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write: new or empty")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="dtype of the weights; default: the run's")
    chosen, overrides = parser.parse_known_args(arguments)
    from rljax.training.export import export_run

    print(export_run(chosen.run, chosen.out, dtype=chosen.dtype, overrides=overrides))


def _chat(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="rljax-chat", allow_abbrev=False, description="Talks to a model in the terminal. Ctrl-C stops an answer, "
        "Ctrl-D ends the conversation. Without a chat template, the model continues each line. For a run, further "
        "options override fields of its recipe, such as --model.folder.")  # fmt: skip
    parser.add_argument("model", type=Path, help="a Hugging Face folder or the folder of a run")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy; default: 0.7")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="length of an answer; default: 512")
    parser.add_argument("--system", help="system message at the start of the conversation")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers; default: 0")
    parser.add_argument("--model.ignore", nargs="+", default=(), metavar="KEY", dest="ignore",
                        help="keys of config.json that do not change the model")  # fmt: skip
    chosen, overrides = parser.parse_known_args(arguments)
    from rljax.rollout import SamplingConfig
    from rljax.training.chat import converse, load_speaker

    sampling = SamplingConfig(max_new_tokens=chosen.max_new_tokens, temperature=chosen.temperature)
    speaker = load_speaker(chosen.model, sampling, ignore=chosen.ignore, overrides=overrides)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a line may not be UTF-8
    prompt, end = ("> ", "\n") if sys.stdin.isatty() else ("", "")
    converse(speaker, jax.random.key(chosen.seed), lambda: input(prompt), sys.stdout, chosen.system)
    print(end=end)  # the shell's prompt begins on a new line
