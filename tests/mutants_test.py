"""Every mutant matches the code. `make mutants` runs the tests on the mutants."""

import pytest

from tools.imports import ROOT
from tools.mutants import importing_tests, read

MUTANTS = read()


def test_there_are_enough():
    assert len(set(MUTANTS)) >= 40


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_one_line_of_its_file_changed(mutant):
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert "\n" not in mutant.old + mutant.new
    compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")
    assert importing_tests(mutant.file)
