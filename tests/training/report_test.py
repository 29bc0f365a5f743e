import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from rljax import algorithms
from rljax.training.report import figures
from rljax.training.report.levels import SERIES, leading, level_colors
from rljax.training.report.page import write_report
from rljax.training.report.settings import expression, flat
from tests.training import fake_run

SECTIONS = (
    "Learning curves",
    "Evaluation by level",
    "Policy diagnostics",
    "Stage 1",
    "Sampled completions",
    "Settings",
)
BEFORE = fake_run.evaluation(fake_run.BEFORE)
VOID = {"meta", "link", "br", "img", "use"}


class Balanced(HTMLParser):
    """Collects tags and text; fails if tags do not nest."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def parse(path):
    page = Balanced()
    page.feed(path.read_text())
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = write_report(tmp_path_factory.mktemp("run"), **fake_run.everything())
    return path, parse(path)


def test_a_whole_run_has_every_section(whole):
    path, page = whole
    assert path.name == "report.html"
    for part in (*SECTIONS, "finished", "StringsTask, seed 3", *fake_run.LEVELS, "1,200 optimizer steps",
                 "240 rollouts", repr(algorithms.ctpo().ratio),
                 "optimizer.learning_rate", "0.10.2", fake_run.DEVICE, "Entropy", "KL to the start", "Gradient norm",
                 "Clip fraction", "Completion length", "moving mean over 17 rollouts"):  # fmt: skip
        assert part in page.text, part
    assert sum(tag == "svg" for tag, _ in page.tags) == 3 + 9 + 3


def test_the_headline_is_held_out_level_2_before_and_after(whole):
    _, page = whole
    evaluations = fake_run.everything()["evaluations"]
    before, after = (evaluations[moment]["level 2 held-out pairs"]["pass@1"] for moment in ("before RL", "after RL"))
    shown = re.sub(r"\s+", " ", page.text)
    assert f"{100 * before[0]:.1f}% → {100 * after[0]:.1f}% {100 * (after[0] - before[0]):+.1f} points" in shown
    assert f"before RL [{100 * before[1]:.1f}, {100 * before[2]:.1f}]" in shown
    assert "256 problems" in shown
    before, after = (evaluations[moment]["level 2 held-out pairs"]["reward"] for moment in ("before RL", "after RL"))
    assert f"Mean reward: {before[0]:.3f} → {after[0]:.3f} [{after[1]:.3f}, {after[2]:.3f}]." in shown


def test_every_figure_of_the_evaluations_is_in_the_table(whole):
    _, page = whole
    for levels in fake_run.everything()["evaluations"].values():
        for row in levels.values():
            for name in ("pass@1", "pass@8", "greedy", "right chain"):
                value, low, high = row[name]
                assert f"{100 * value:.1f}[{100 * low:.1f}, {100 * high:.1f}]" in page.text
            value, low, high = row["reward"]
            assert f"{value:.3f}[{low:.3f}, {high:.3f}]" in page.text


def test_held_out_reward_has_its_curves_unless_it_is_the_accuracy(tmp_path, whole):
    _, page = whole
    assert "Held-out reward by level" in page.text
    rows = fake_run.metrics(0, 45)
    for same in ({}, {"reward": rows[0]["accuracy"]}):  # no reward in the log, or a reward equal to the accuracy
        looked = [{name: x for name, x in rows[0].items() if name != "reward"} | same]
        changed = {**fake_run.everything(), "metrics": [*looked, *(row for row in rows if row["phase"] == "rl")]}
        shown = parse(write_report(tmp_path, **changed)).text
        assert "Held-out accuracy by level" in shown
        assert "Held-out reward" not in shown


def test_evaluations_of_an_earlier_run_without_rewards_are_shown(tmp_path):
    evaluations = fake_run.everything()["evaluations"]
    for row in (row for levels in evaluations.values() for row in levels.values()):
        del row["reward"]
    mixed = {**evaluations, "again": BEFORE}
    for shown in (evaluations, mixed):
        page = parse(write_report(tmp_path, **{**fake_run.everything(), "metrics": [], "evaluations": shown}))
        assert "Mean reward" not in page.text


def test_rewards_are_marked(whole):
    path, page = whole
    marks = re.findall(r'class="mark (\w+)">(\S) ([^<]+)<', path.read_text())
    assert marks.count(("right", "✓", "1")) == 3 + 8
    assert marks.count(("partly", "~", "0.5")) == 2
    assert len(marks) == 24
    assert "3 of these 12 are correct" in page.text


def test_the_report_loads_nothing_external(whole):
    path, page = whole
    assert not re.search(r"url\(\s*[\"']?(?!#)", path.read_text())
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metrics": [], "evaluations": {}, "samples": {}, "config": {}, "versions": {}}, "Nothing has been evaluated"),
        ({"metrics": fake_run.metrics(5, 0), "evaluations": {}, "samples": {}}, "Stage 2 (RL) has not started"),
        ({"metrics": fake_run.metrics(0, 1), "samples": {"start": []}}, "None yet"),
        ({"metrics": fake_run.metrics(2, 45), "evaluations": {"before RL": BEFORE}}, "45 rollouts"),
        ({"evaluations": {"before RL": {}, "after RL": {"all": {"samples": 1, "pass@1": [0.5, 0.1, 0.9]}}}}, "50.0%"),
        ({"metrics": [{"phase": "rl", "step": 0, "reward": None, "kl": None, "seconds": None}]}, "1 rollout"),
        ({"metrics": [{"phase": "rl", "step": 0, "reward": -1}, {"phase": "eval", "step": 0, "accuracy": {}}]}, "Rew"),
    ],
)  # fmt: skip
def test_part_of_a_run_is_shown(tmp_path, change, said):
    page = parse(write_report(tmp_path, **{**fake_run.everything(), "metrics": [], **change}))
    assert said in page.text


def test_nothing_from_outside_becomes_markup(tmp_path):
    evil = '<script>alert("x")</script>&'
    triple = [0.5, 0.4, 0.6]
    path = write_report(
        tmp_path,
        config={"task": evil, "seed": evil, "run": evil, "algorithm": {"type": "PolicyGradient", evil: evil}},
        versions={evil: evil},
        device=evil,
        metrics=[{"phase": "eval", "step": 0, "accuracy": {evil: 0.5}}, {"phase": "rl", "step": 0, "reward": 0.5}],
        evaluations={evil: {evil: {"problems": evil, "samples": 1, evil: triple}}},
        samples={evil: [{"prompt": evil, "completion": evil, "answer": evil, "level": evil, "reward": 0.0,
                         "solved": False}]},
        status=evil,
    )  # fmt: skip
    page = parse(path)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(evil) >= 16


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    path = write_report(tmp_path, **{**fake_run.everything(), "metrics": []})
    before = path.read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        write_report(tmp_path, **{**fake_run.everything(), "metrics": [], "status": "other"})
    assert path.read_text() == before


def test_a_figure_without_interval_is_named(tmp_path):
    bad = {"after RL": {"level 1": {"problems": 1, "samples": 1, "pass@1": 0.5}}}
    with pytest.raises(ValueError, match=r"evaluations\['after RL'\]\['level 1'\]\['pass@1'\] = 0.5"):
        write_report(tmp_path, **{**fake_run.everything(), "evaluations": bad})


def test_a_panel_draws_its_values():
    """The points in the SVG are an affine function of the values; those of a shifted curve are not."""
    y = np.array([0.2, 0.9, 0.4, 0.7])
    svg = figures.panel([figures.Curve(np.arange(4.0), y)], "values & more", percent=True, top=1.0)
    ElementTree.fromstring(svg)
    drawn = re.search(r'd="([^"]*)"[^>]*style="[^"]*stroke: var\(--c0\)', svg)
    assert drawn is not None
    points = np.array([[float(x) for x in pair] for pair in re.findall(r"[ML] ([\d.]+) ([\d.]+)", drawn[1])])
    x_drawn, y_drawn = points[:, 0], -points[:, 1]
    assert np.corrcoef(x_drawn, np.arange(4.0))[0, 1] == pytest.approx(1)
    assert np.corrcoef(y_drawn, y)[0, 1] == pytest.approx(1)
    assert np.corrcoef(y_drawn, np.roll(y, 1))[0, 1] < 0.9
    assert "<style" not in svg
    assert "#" not in re.sub(r"url\(#|href=\"#", "", svg)  # all colors are CSS variables


def test_smoothing_is_a_centered_mean_without_nans():
    y = np.array([1.0, np.nan, 3.0, 8.0, 1.0])
    np.testing.assert_allclose(figures.smooth(y, 3), [1.0, 2.0, 5.5, 4.0, 4.5])
    np.testing.assert_allclose(figures.smooth(np.full(9, 2.0), 5), 2.0)
    assert np.isnan(figures.smooth(np.full(3, np.nan), 3)).all()
    for window in (0, 2):
        with pytest.raises(ValueError, match=f"window = {window}"):
            figures.smooth(y, window)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_learning_curve_is_a_picture(tmp_path, suffix):
    path = figures.learning_curve(fake_run.metrics(0, 61), tmp_path / f"curve.{suffix}")
    assert path.read_bytes()[:5] == {"png": b"\x89PNG\r", "svg": b"<?xml"}[suffix]
    assert path.stat().st_size > 10_000


def test_learning_curve_without_rl_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rows: expected at least one with phase"):
        figures.learning_curve(fake_run.metrics(5, 0), tmp_path / "curve.png")


def test_the_headline_has_the_first_color():
    colors = level_colors(fake_run.LEVELS, "level 2 held-out pairs")
    assert colors["level 2 held-out pairs"] == SERIES[0]
    assert len(set(colors.values())) == len(fake_run.LEVELS)
    assert set(level_colors([str(i) for i in range(20)], None)) == {str(i) for i in range(20)}


def test_the_leading_level_is_the_tasks_headline_if_it_was_evaluated():
    assert leading(["a", "b"], "b") == "b"
    assert leading(["a", "b"], "c") == leading(["a", "b"], None) == "a"
    with pytest.raises(ValueError, match="expected at least one"):
        leading([], "b")


def test_a_config_reads_as_it_is_written():
    described = {"function": "power_mean", "bound": [2, {"function": "f", "bound": {"g": "h"}}, {"p": [1, 2]}]}
    assert expression(described) == "power_mean(2, f(g=h), p=[1, 2])"
    assert expression({"type": "Clip", "low": 0.1, "inner": {"a": None}}) == "Clip(low=0.1, inner=dict(a=None))"
    assert flat({"algorithm": {"function": "f"}, "a": {"b": {"c": True}}}) == {"algorithm": "f()", "a.b.c": "True"}


def test_what_was_left_out_is_counted(tmp_path):
    left_out = {"prompts": {"count": 3, "total": 2000, "limit": "rollout.prompt_length = 96"},
                "demonstrations": {"count": 0, "total": 64, "limit": "likelihood.row_length = 112"}}  # fmt: skip
    shown = parse(write_report(tmp_path, **fake_run.everything(), left_out=left_out)).text
    assert "Left out of the prompts3 of 2,000longer than rollout.prompt_length = 96 allows" in shown.replace("\n", "")
    assert "Left out of the demonstrations" not in shown
