"""The pages of docs/losses: their code runs, and the equalities that they state hold."""

import re

import pytest

from tools.imports import ROOT

PAGES = sorted((ROOT / "docs/losses").glob("*.md"))
THIRD_PARTY = ("flax", "optax", "equinox")


def code(page) -> str:
    """The Python blocks of a page, at their own lines."""
    blocks = re.findall(r"(.*?)```python\n(.*?)```", page.read_text(), flags=re.S)
    return "\n".join("\n" * text.count("\n") + block.rstrip("\n") for text, block in blocks)


def run(page) -> dict:
    names = {"__name__": page.stem}
    exec(compile(code(page), str(page), "exec"), names)
    return names


def marked(page):
    other = any(f"import {name}" in code(page) or f"from {name}" in code(page) for name in THIRD_PARTY)
    return pytest.param(page, id=page.stem, marks=[pytest.mark.standard_promotion] if other else [])


@pytest.mark.parametrize("page", [marked(page) for page in PAGES])
def test_the_code_of_a_page_runs(page):
    run(page)
