"""benchmarks/token_stats_gpu.py on a CPU, in Pallas' interpreter at a tiny size: correctness check, table and file."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from pallas_kernels import token_stats
from pallas_kernels._vocabulary.types import Tile
from pallas_kernels.token_stats.gpu import Launch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
comparison = importlib.import_module("token_stats_gpu")

SIZE = (20, 16, 40)
PASSES = {"forward", "with_gradients"}
INTERPRETED = [(Tile(16, 16), Launch(interpret=True)), (Tile(32, 16), Launch(interpret=True))]


def wrong(hidden, unembedding, targets):
    return token_stats(hidden, unembedding, targets, temperature=1.01)


def failing(*inputs):
    raise MemoryError("no room")


def test_a_run_judges_times_and_keeps_what_fails(tmp_path, capsys):
    everything = comparison.candidates([(16, 16)], INTERPRETED)
    assert [c.name.partition(" ")[0] for c in everything] == ["default", "kernel", "dense", "tiles", "kernel"]
    everything = [
        everything[0],
        everything[1]._replace(with_gradients=False),
        comparison.Candidate("wrong", wrong, with_gradients=False),
        comparison.Candidate("failing", failing),
        comparison.Candidate("peer", lambda n, d, v: (lambda: None, lambda: None), peer=True),
    ]
    rows = comparison.report([SIZE], everything, 9, str(tmp_path / "rows.json"), [SIZE])
    assert json.loads((tmp_path / "rows.json").read_text()) == json.loads(json.dumps(rows))
    judged, timed = ([row for row in rows if row["size"] == size] for size in (None, SIZE))
    assert [row.get("right") for row in judged] == [True, True, False, None]
    assert judged[3]["error"] == timed[3]["error"] == "MemoryError: no room"
    assert [PASSES & row.keys() for row in timed] == [PASSES, {"forward"}, {"forward"}, set(), PASSES]
    for products, name in ((2, "forward"), (8, "with_gradients")):
        found = timed[0][name]
        assert found["tflops"] * found["ms"] * 1e9 == pytest.approx(products * 20 * 16 * 40)
    printed = capsys.readouterr().out
    assert printed.count("WRONG") == 1
    assert printed.count("\n") == 1 + len(rows)


def test_nothing_is_begun_too_late(capsys):
    rows = comparison.report([SIZE], comparison.candidates([], INTERPRETED[:1]), 0, small=[SIZE])
    assert all("not started within 0 minutes" in row["error"] for row in rows)


def test_without_a_gpu_an_error_is_printed():
    with pytest.raises(SystemExit, match="--device = gpu: expected a GPU, but jax's backend is cpu"):
        comparison.main([SIZE], None, 1)
