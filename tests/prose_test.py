"""Tests of the checker of the project's English, tools/prose.py: each pattern is reported at its line."""

import pytest

from tools.prose import EXCEPTIONS, PATTERNS, faults

SENTENCES = (  # sentences before and after correction; one pair per pattern, in the order of PATTERNS
    ('"""What is reported."""', '"""Training metrics."""'),
    ("Raises ValueError where low > high.", "Raises ValueError if low > high. 0 is where it starts."),
    (
        "A padding column is no column; it is none.",
        "A padding column is not a column: there is no such row. x is None.",
    ),
    ("The rows lie on the host.", "The rows are stored on the host, in layers."),
    ("The function says how many.", "The function returns how many."),
    ("Its worth is the scan's way of it.", "Its value is as in the scan."),
    ("Two tokens a row and 3 MB a device, read once a step.", "Two tokens per row: a row is read a second time."),
    (
        "The normalised colour is misspelt, the behaviour standardised.",
        "The normalized color of an otherwise precise rise.",
    ),
    ("Errors as there.", "Errors as in `clip`, as there are three."),
)


@pytest.mark.parametrize(("pattern", "pair"), [*zip(PATTERNS, SENTENCES, strict=True)], ids=range(len(SENTENCES)))
def test_a_pattern_is_found_and_its_correction_is_not(tmp_path, pattern, pair):
    file = tmp_path / "page.md"
    if '"""' in pair[0]:
        file = tmp_path / "page.py"
    before, after = pair
    file.write_text(before + "\n", encoding="utf-8")
    assert any(PATTERNS[pattern] in line for line in faults(file))
    file.write_text(after + "\n", encoding="utf-8")
    assert faults(file) == []


def test_code_and_formulas_are_not_prose(tmp_path):
    file = tmp_path / "page.md"
    file.write_text("`None where`, $x \\lie lies$\n\n```python\nlies = says\n```\n", encoding="utf-8")
    assert faults(file) == []


def test_a_fault_names_its_line_in_docstrings_comments_and_messages(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        '"""A.\n\nIt lies.\n"""\nx = 1  # says\nraise ValueError(f"{x}: it is none of them")\n', encoding="utf-8"
    )
    assert [int(line.split(":")[1]) for line in faults(file)] == [3, 5, 6]


def test_the_list_of_exceptions_is_short():
    assert len(EXCEPTIONS) <= 10
