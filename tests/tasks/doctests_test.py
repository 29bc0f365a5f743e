"""The examples in the docstrings are true."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["string_functions", "string_problems", "tokenizer", "verifier"])
def test_examples(name):
    results = doctest.testmod(importlib.import_module(f"rljax.tasks.{name}"))
    assert results.attempted
    assert not results.failed
