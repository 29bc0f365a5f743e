import ast
import json
import subprocess
import sys

import pytest

from rljax.training.report.metrics_log import read
from tests.training.subprocesses import ROOT, environment
from tools.imports import files

TEXT = "é × 東京 \U0001f600"
PROGRAM = f"""if True:
    import locale, sys
    from pathlib import Path
    import jax.numpy as jnp
    from rljax.tasks import JsonlTask
    from rljax.training import commands
    from rljax.training.checkpoint.checkpoints import Checkpoints
    from rljax.training.checkpoint.folder import read_json, write_json
    from rljax.training.report import metrics_log
    assert locale.getpreferredencoding(False) not in ("UTF-8", "utf-8"), locale.getpreferredencoding(False)
    folder, text = Path(sys.argv[1]), {TEXT!a}
    write_json(folder / "small.json", text)
    assert read_json(folder / "small.json", None) == text
    with metrics_log.MetricsLog(folder, resume_from={{"eval": 1}}) as log:
        log.write("rl", 0, {{text: 1.0}})
    assert [row[text] for row in metrics_log.read(folder)] == [2.0, 1.0]
    checkpoints = Checkpoints(folder / "c")
    checkpoints.save(0, {{"x": jnp.zeros(3)}}, {{"text": text}})
    checkpoints.close()
    data = JsonlTask(folder / "task.jsonl", data_dir=folder, held_out_share=0).load()
    assert data.prompts[0].prompt == text
    commands._as_command(lambda arguments: print("printed:", *arguments), [text])
"""


def test_files_are_utf8_in_a_locale_that_is_not(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"phase": "eval", "step": 0, TEXT: 2.0}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (tmp_path / "task.jsonl").write_text(
        json.dumps({"prompt": TEXT, "answer": TEXT}, ensure_ascii=False), encoding="utf-8"
    )
    ascii_locale = environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=ascii_locale, cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"printed: \\xe9 \\xd7" in done.stdout
    assert json.loads((tmp_path / "small.json").read_text(encoding="utf-8")) == TEXT
    assert read(tmp_path)[1] == {"phase": "rl", "step": 0, TEXT: 1.0}


def unencoded(source: str) -> list[int]:
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if _opens_text(call) and "encoding" not in {k.arg for k in call.keywords}]


def _opens_text(call: ast.Call) -> bool:
    named = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if named in ("read_text", "write_text"):
        return True
    if named == "open":
        modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
        return not any(isinstance(mode, str) and set(mode) <= set("rwxab+") and "b" in mode for mode in modes)
    return any(k.arg in ("text", "universal_newlines") for k in call.keywords)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("path.read_text()", [1]),
        ("path.write_text(x, encoding='utf-8')", []),
        ("open(path)", [1]),
        ("path.open('w')", [1]),
        ("path.open('rb')", []),
        ("subprocess.run(x, text=True)", [1]),
        ("subprocess.run(x, encoding='utf-8')", []),
    ],
)
def test_a_file_opened_in_the_encoding_of_the_locale_is_noticed(source, found):
    assert unencoded(source) == found


def test_no_file_is_opened_in_the_encoding_of_the_locale():
    own = files("pallas_kernels", "rljax", "configs", "launch", "benchmarks", "tools", "examples")
    sources = {file: (ROOT / file).read_text(encoding="utf-8") for file in own}
    found = {file: lines for file, source in sources.items() if (lines := unencoded(source))}
    assert len(sources) > 100
    assert found == {}
