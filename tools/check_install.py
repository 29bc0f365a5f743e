"""Test of the built distribution: `make test-install`.

Builds the sdist and, from the sdist, the wheel. Installs and runs the wheel outside the checkout in two environments:
without extras at the versions in requirements.lock, and with `train` at the oldest versions that pyproject.toml allows.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).parent / "uv"
REMEDY = "pip install 'rljax-llm[train]'"

# Rewards 1 and 0 have mean 1/2 and standard deviation √½, so the advantages are ±√½; both tokens have weight 1/2. At
# ratio 1 the loss is −Σ w·A = 0 and its gradient is −w·A = ∓√½/2. Equal logits of 5 tokens give log-probability −log 5.
BASE = """
import importlib.metadata, importlib.util, math, pathlib, sys
import jax, jax.numpy as jnp
import pallas_kernels, rljax, rljax.logprobs
from rljax import Batch, aggregation, algorithms, policy_loss

algorithm, mask, logp = algorithms.grpo(), jnp.ones((1, 2, 1), bool), jnp.zeros((1, 2, 1))
advantages = algorithm.advantage(jnp.array([[1.0, 0.0]]), mask)
weights = algorithm.aggregation(mask, aggregation.side(advantages, mask))
batch = Batch(mask=mask, old_logp=logp, advantages=advantages, weights=weights)
loss, gradient = jax.value_and_grad(lambda logp: policy_loss(logp, batch, algorithm.ratio))(logp)
assert abs(loss) < 1e-6, loss
assert jnp.allclose(gradient.ravel(), math.sqrt(0.5) / 2 * jnp.array([-1, 1]), atol=1e-4), gradient
statistics = pallas_kernels.token_stats(jnp.ones((3, 4)), jnp.ones((5, 4)), jnp.array([0, 1, 2]))
assert jnp.allclose(statistics[0], -math.log(5)), statistics

for module in (rljax, pallas_kernels):
    folder = pathlib.Path(module.__file__).parent
    assert folder.is_relative_to(sys.prefix), folder
    assert (folder / "py.typed").exists(), folder
assert rljax.__version__ == importlib.metadata.version("rljax-llm")
assert importlib.util.find_spec("flax") is None
try:
    import rljax.training
except ImportError as error:
    assert REMEDY in str(error), error
else:
    raise AssertionError("rljax.training was imported without its packages")
print("base:", *sorted(d.name for d in importlib.metadata.distributions()))
"""
SMALL = (
    "--steps=2", "--likelihood.steps=5", "--model.width=32", "--model.layers=1", "--rollout.prompts=4",
    "--rollout.completions=8", "--rollout.train-groups=0", "--evaluation.problems=8", "--evaluation.samples=2",
    "--evaluation.watch-problems=8", "--evaluation.batch=16",
)  # fmt: skip


def run(folder: Path, *command: str | Path, fails: bool = False) -> str:
    """Runs a command in the folder and returns its output; AssertionError if success does not match `fails`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, encoding="utf-8", stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)  # fmt: skip
    assert (done.returncode != 0) == fails, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def built(folder: Path) -> Path:
    stale = ROOT / "rljax_llm.egg-info"  # setuptools would add the files listed there
    shutil.rmtree(stale, ignore_errors=True)
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(ROOT, sys.executable, "-c", code, folder)
    shutil.rmtree(stale)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.TarFile.gzopen(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "rljax/py.typed", "pallas_kernels/py.typed", "configs/strings.py"} <= held, held
    run(folder, sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", sdist)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith("licenses/LICENSE")], archive.namelist()
    return wheel


def environment(folder: Path) -> Path:
    run(folder, sys.executable, "-m", "venv", "--without-pip", "environment")
    return folder / "environment" / "bin"


def install(commands: Path, *requirements: str | Path, free: Iterable[str] = ()) -> None:
    """Installs requirements in the locked versions, except for the distributions in `free`."""
    pins = re.findall(r"^[\w.-]+.*==[^\\\n]+", (ROOT / "requirements.lock").read_text(encoding="utf-8"), flags=re.M)
    constraints = commands / "constraints.txt"
    constraints.write_text("\n".join(pin for pin in pins if distribution(pin) not in free), encoding="utf-8")
    python = commands / "python"
    run(commands, UV, "pip", "install", "--quiet", "--python", python, "--constraint", constraints, *requirements)


def distribution(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def check_base(wheel: Path, folder: Path) -> None:
    """Without extras: losses, kernels and the error messages of the commands."""
    commands = environment(folder)
    install(commands, wheel)
    print(run(folder, commands / "python", "-c", f"REMEDY = {REMEDY!r}\n{BASE}"), end="")
    for command in ("rljax-train", "rljax-evaluate", "rljax-export"):
        output = run(folder, commands / command, "--help", fails=True)
        assert REMEDY in output, output
        assert "Traceback" not in output, output


def check_train(wheel: Path, folder: Path) -> None:
    """With the oldest versions that `train` allows: a small run and its evaluation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    free = {distribution(needed) for needed in direct}
    commands = environment(folder)
    install(commands, *direct, "--resolution=lowest-direct", free=free)
    install(commands, f"rljax-llm[train] @ {wheel.as_uri()}", free=free)
    installed = run(folder, UV, "pip", "freeze", "--quiet", "--python", commands / "python").splitlines()
    print("train:", *(line for line in installed if distribution(line) in free))
    assert "--likelihood.steps" in run(folder, commands / "rljax-train", "--help")
    run(folder, commands / "rljax-train", "--run", "small", *SMALL)
    assert (folder / "small" / "report.html").stat().st_size > 0
    assert "95 % interval" in run(folder, commands / "rljax-evaluate", "small")


if __name__ == "__main__":
    with TemporaryDirectory() as root:
        for name in ("built", "base", "train"):
            (Path(root) / name).mkdir()
        wheel = built(Path(root) / "built")
        check_base(wheel, Path(root) / "base")
        check_train(wheel, Path(root) / "train")
