"""Tests of benchmarks/tpu_compile.py and its cases, without libtpu."""

import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

with pytest.MonkeyPatch.context() as patch:  # under Bazel this file is a symbolic link into the checkout
    patch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    tpu_compile = importlib.import_module("tpu_compile")
    tpu_cases, tpu_chips = importlib.import_module("tpu_cases"), importlib.import_module("tpu_chips")

V5E = tpu_chips.CHIPS["v5e"]
FITS = tpu_chips.Figures(temporaries=7.9, peak=1300.0, vmem=24.0, flops=5.1e12, is_kernel=True)


def case(**changed):
    return tpu_cases.Case("program", (3, 4, 5), lambda devices: (abs, ()), **{"temporaries": 8} | changed)


@pytest.mark.parametrize(("changed", "found", "error", "wrong"), [
    ({}, FITS, None, None),
    ({}, FITS._replace(temporaries=8.1), None, "temporaries = 8.1 MiB: expected at most 8.0"),
    ({"temporaries": None}, FITS._replace(temporaries=2374), None, None),
    ({}, FITS._replace(is_kernel=False), None, "contains no Pallas kernel"),
    ({"is_kernel": False}, FITS._replace(is_kernel=False), None, None),
    ({}, None, "JaxRuntimeError: exceeded scoped vmem limit", "exceeded scoped vmem limit"),
    ({"fails_with": "vmem"}, None, "JaxRuntimeError: exceeded scoped vmem limit", None),
    ({"fails_with": "vmem"}, None, "TypeError: no such argument", "no such argument"),
    ({"fails_with": "vmem"}, FITS, None, "the program compiled: expected an error that contains 'vmem'"),
])  # fmt: skip
def test_judge_reports_each_problem(changed, found, error, wrong):
    said = tpu_compile.judge(case(**changed), found, error)
    assert (said is None) if wrong is None else (wrong in said)


@pytest.fixture
def run(monkeypatch, capsys):
    def run(compile, *arguments):
        monkeypatch.setattr(tpu_compile, "has_libtpu", lambda: True)
        monkeypatch.setattr(tpu_compile, "devices", lambda chip: ())
        monkeypatch.setattr(tpu_compile, "cases", lambda everything: [case()] * (1 + everything))
        monkeypatch.setattr(tpu_compile, "compile_case", compile)
        return tpu_compile.main(list(arguments)), capsys.readouterr().out

    return run


def test_all_fits(run):
    status, printed = run(lambda case, chip: FITS)
    assert status == 0
    rows = [line for line in printed.splitlines() if line.startswith("| program | 3, 4, 5 |")]
    assert [row.split(" | ")[2] for row in rows] == list(tpu_chips.CHIPS) == ["v5e", "v5p", "v6e", "tpu7x"]
    assert all("| 7.9 | 8 | 1300.0 | 24.0 | 5.100 |" in row for row in rows)
    assert len({line.count("|") for line in printed.splitlines() if line.startswith("|")}) == 1
    assert "4 of 4" in printed


def test_a_failed_compilation_is_named_and_the_others_are_reported(run):
    def compile(case, chip):
        if chip.name == "v5p":
            raise ValueError("a block of VMEM too many")
        return FITS

    status, printed = run(compile)
    assert status == 1
    assert re.findall("^FAILED: .*", printed, flags=re.M) == [
        "FAILED: program 3, 4, 5 v5p: ValueError: a block of VMEM too many"
    ]
    assert "3 of 4" in printed


def test_a_bound_that_is_exceeded_fails(run):
    assert run(lambda case, chip: FITS._replace(temporaries=8.1))[0] == 1


def test_words_choose_rows(run):
    assert "2 of 2" in run(lambda case, chip: FITS, "--all", "v6e")[1]
    status, printed = run(lambda case, chip: FITS, "v4")
    assert status == 1
    assert "no row contains v4" in printed


def test_without_libtpu_nothing_is_compiled(monkeypatch, capsys):
    monkeypatch.setattr(tpu_compile, "has_libtpu", lambda: False)
    assert tpu_compile.main([]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "nothing was compiled" in line
    assert "make .venv/.tpu" in line


def test_a_program_for_the_cpu_is_noticed(monkeypatch):
    monkeypatch.setattr(tpu_chips, "devices", lambda chip: jax.devices())
    with pytest.raises(RuntimeError, match="for the CPU, not for v5e"):
        tpu_chips.compile_for(V5E, jnp.sin, (jax.ShapeDtypeStruct((8, 128), jnp.float32),))


def test_the_figures_are_the_compilers():
    scoped = '"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"%d"}]'
    text = f"custom-call tpu_custom_call {scoped % 2**23}\nfusion {scoped % 2**20}\ncopy " + scoped[:30] + "]"
    memory = SimpleNamespace(temp_size_in_bytes=3 * 2**20, peak_memory_in_bytes=5 * 2**20)
    compiled = SimpleNamespace(
        as_text=lambda: text, memory_analysis=lambda: memory, cost_analysis=lambda: {"flops": 7.0}
    )
    assert tpu_chips.figures(compiled) == tpu_chips.Figures(3, 5, 8, 7, True)


def test_every_kernel_is_compiled_both_ways_within_the_targets():
    found = tpu_cases.cases(everything=False)
    for kernel in ("token_stats", "token_stats over 4 chips", "segmented_cumsum"):
        of_kernel = {c.program: c for c in found if c.program.split(",")[0] == kernel and "unpadded" not in c.program}
        assert max(c.temporaries for name, c in of_kernel.items() if "gradient" not in name) == 8
        assert max(c.temporaries for name, c in of_kernel.items() if "gradient" in name) == 32
    assert {c.sizes for c in found if c.program == "token_stats"} == set(tpu_cases.SIZES)
    assert sum(c.fails_with is not None for c in found) == 2
    more = tpu_cases.cases(everything=True)
    assert {c.sizes for c in more if c.program == "dense"} == {*tpu_cases.SIZES, *tpu_cases.MORE_SIZES}
    assert all(c.is_kernel for c in more if c.program.startswith(("token_stats", "segmented")))


def test_gradients_are_of_all_three_outputs():
    rng = np.random.default_rng(0)
    hidden, unembedding = (rng.normal(size=(n, 8)).astype(np.float32) for n in (5, 7))
    gradients = jax.jit(tpu_cases.backward(tpu_cases.token_stats))
    weights = [*np.eye(3, dtype=np.float32)[:, :, None].repeat(5, 2), np.ones((3, 5), np.float32)]
    of = [map(np.asarray, gradients(hidden, unembedding, np.arange(5), w)) for w in weights]
    for *parts, whole in zip(*of, strict=True):
        assert all(np.max(np.abs(part)) > 1e-2 for part in parts)
        assert np.allclose(sum(parts), whole, atol=1e-5)
