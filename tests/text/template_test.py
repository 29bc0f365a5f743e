import gc
import os
import subprocess
import time

import pytest

from rljax.text import template as module
from rljax.text.template import ChatTemplate


def render(source: str, seconds: float = 10.0, **variables) -> str:
    return ChatTemplate(source, name="folder", seconds=seconds).render(variables)


@pytest.mark.parametrize(("source", "expected"), [
    ("{% if true %}\n  a\n  {% endif %}\n{{ x | tojson }}", '  a\n{"é": "<b>"}'),
    ("{{ x | tojson(indent=1, ensure_ascii=true) }}", '{\n "\\u00e9": "<b>"\n}'),
    ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
    ("{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}", "21"),
    ("{% set ns = namespace(a=1) %}{% set ns.a = 5 %}{{ ns.a }}{{ dict(a=1) }}{{ dict.fromkeys('b') }}",
     "5{'a': 1}{'b': None}"),
    ("[{{ absent }}]", "[]"),
])  # fmt: skip
def test_templates_are_rendered_as_by_transformers(source, expected):
    assert render(source, x={"é": "<b>"}) == expected


def test_the_date_of_now():
    assert render("{{ strftime_now('%Y') }}") in (time.strftime("%Y"), str(int(time.strftime("%Y")) - 1))


@pytest.mark.parametrize(("source", "fault"), [
    ("{{ raise_exception('bad role') }}", "^folder: bad role$"),
    ("\n{% if %}", "^folder: line 2: "),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ x.a.b }}", "has no attribute 'a'"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ x.update(a=1) }}", "unsafe|not safely callable"),
    ("{% set ns = namespace(__a=1) %}", "without an underscore"),
    ("{% set ns = namespace() %}{% set ns._a = 1 %}", "without an underscore"),
    ("{% include 'other' %}", "no loader"),
    ("{% for i in range(10**12) %}{% endfor %}", "Range too big"),
    ("{{ 'a' * 10**10 }}", "needs too much memory"),
    ("{{ 'a' * (2 * 10**7) }}", "wrote 20000000 characters"),
    ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "recurses too deeply"),
    ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recurses too deeply|ended its process"),
])  # fmt: skip
def test_faults_are_named(source, fault):
    with pytest.raises(ValueError, match=fault):
        render(source, x={})


@pytest.mark.parametrize("source", [
    "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}", "{{ 9**(9**9) }}",
])  # fmt: skip
def test_a_template_that_takes_hours_is_ended(source):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"^folder: takes more than 0\.3 seconds$"):
        render(source, seconds=0.3)
    assert time.monotonic() - start < 30


def test_the_next_rendering_works_after_a_limit():
    template = ChatTemplate("{% if x %}{{ 9**(x**9) }}{% endif %}ok", name="folder", seconds=0.3)
    with pytest.raises(ValueError, match="takes more than"):
        template.render({"x": 9})
    assert template.render({"x": 0}) == "ok"


def test_one_process_renders_all_and_ends_with_its_template(monkeypatch):
    started = []
    start = module._start
    monkeypatch.setattr(module, "_start", lambda: started.append(start()) or started[-1])
    template = ChatTemplate("{{ x }}", name="folder")
    assert [template.render({"x": i}) for i in range(100)] == [str(i) for i in range(100)]
    [process] = started
    assert process.poll() is None
    del template
    gc.collect()
    assert process.wait(10) < 0


def test_an_interrupted_rendering_leaves_no_answer_behind(monkeypatch):
    """Otherwise the next rendering would receive the answer to the interrupted one."""
    template = ChatTemplate("{{ x }}", name="folder")
    ask = module._ask

    def interrupted(process, line):
        ask(process, line)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            template.render({"x": 1})
    assert template.render({"x": 2}) == "2"


def test_the_process_ends_if_its_input_ends():
    process = module._start()
    with process:
        process.communicate("")
    assert process.returncode == 0


def test_a_fork_starts_its_own_process(monkeypatch):
    """We pretend to be a fork, since a fork of a process with JAX's threads may hang."""
    template = ChatTemplate("{{ x }}", name="folder")
    template.render({"x": 1})
    first, own = template._process, os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: own + 1)
        assert template.render({"x": 2}) == "2"
        assert template._process is not first
        template._stop()
    assert isinstance(first, subprocess.Popen)
    assert first.poll() is None


def test_long_messages_pass():
    assert len(render("{{ x }}", x="é" * 10**6)) == 10**6
