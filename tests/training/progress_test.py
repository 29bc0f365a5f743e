import io

import pytest
from rich.console import Console

from rljax.training.report.progress import Progress

STEP = {"reward": 0.5, "loss": -0.01, "kl": 0.00123, "clip_share": 0.031, "tokens_per_second": 17512.4}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run(totals, steps, *, headline=None, terminal=False, enabled=True, seconds=2.0, width=100):
    """The output for `steps`, each (stage, step, metrics), `seconds` apart."""
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=terminal, width=width, highlight=False)
    with Progress(totals, headline=headline, enabled=enabled, every=10.0, console=console, clock=clock) as progress:
        for stage, step, metrics in steps:
            clock.now += seconds
            progress.update(stage, step, metrics)
        progress.say("all [done]")
    return out.getvalue()


def test_plain_lines_first_last_and_every_ten_seconds():
    shown = run({"rl": 20}, [("rl", n, STEP) for n in range(20)]).splitlines()
    assert [line.split()[1] for line in shown[:-1]] == ["1/20", "6/20", "11/20", "16/20", "20/20"]
    assert shown[1] == "rl 6/20  reward 0.500  KL 1.2e-03  clipped 3.10%  tokens/s 17,512  time left 28s"
    assert "left" not in shown[0]  # one step does not determine a speed
    assert shown[-2].endswith("left 0s")
    assert shown[-1] == "all [done]"


def test_time_left_is_computed_from_the_recent_speed_of_this_stage():
    steps = [("likelihood", 0, {"loss": 1.0}), ("rl", 0, STEP), ("rl", 1, STEP)]
    shown = run({"likelihood": 1, "rl": 200}, steps, seconds=11.0).splitlines()
    assert shown[0] == "likelihood 1/1  loss 1.0000"
    assert "left" not in shown[1]
    assert shown[2].endswith("left 36:18")  # 198 steps of 11 s


def test_accuracy_is_from_the_latest_evaluation_of_the_headline_level():
    looks = [("eval", 0, {"accuracy": {"short": 0.9, "long": 0.25}}), ("rl", 0, STEP)]
    assert "accuracy 0.250" in run({"rl": 1}, looks, headline="long")
    assert "accuracy 0.900" in run({"rl": 1}, looks)
    assert "accuracy" not in run({"rl": 1}, [("eval", 0, {"accuracy": {}}), ("rl", 0, STEP)])


def test_a_terminal_shows_a_bar_the_numbers_and_the_messages():
    shown = run({"likelihood": 2, "rl": 4}, [("rl", 0, STEP), ("rl", 1, STEP)], terminal=True)
    for part in ("likelihood", "2/2", "2/4", "━", "reward", "0.500", "17,512", "left", "all [done]"):
        assert part in shown


def test_a_narrow_line_of_a_file_is_not_wrapped():
    assert len(run({"rl": 1}, [("rl", 0, STEP)], width=20).splitlines()) == 2


@pytest.mark.parametrize("terminal", [False, True])
def test_other_processes_show_nothing(terminal):
    assert run({"rl": 2}, [("rl", 0, STEP), ("rl", 1, STEP)], terminal=terminal, enabled=False) == ""


def test_an_unknown_stage_is_named():
    with pytest.raises(ValueError, match=r"stage = 'r1': expected one of \['rl'\]"):
        run({"rl": 1}, [("r1", 0, STEP)])


def test_a_metric_without_a_value_is_left_out():
    nothing = {**STEP, "kl": float("nan"), "clip_share": float("nan")}
    assert run({"rl": 1}, [("rl", 0, nothing)]).splitlines()[0] == "rl 1/1  reward 0.500  tokens/s 17,512"


def test_steps_without_a_signal_are_counted_in_the_line(capsys):
    progress = Progress({"rl": 2}, every=0)
    progress.update("rl", 0, {"reward": 0.5, "skipped_steps": 0.0})
    progress.update("rl", 1, {"reward": 0.5, "skipped_steps": 1.0})
    first, second = capsys.readouterr().out.strip().splitlines()
    assert "skipped" not in first
    assert "skipped steps 1" in second
