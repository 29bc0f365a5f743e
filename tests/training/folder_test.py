import math

import pytest

from rljax.training.checkpoint.folder import read_json, write_json


def test_a_reader_has_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"steps": 1})
    with path.open() as reading:
        write_json(path, {"steps": 2})
        assert reading.read().split() == ["{", '"steps":', "1", "}"]
    assert read_json(path, None) == {"steps": 2}


def test_a_value_that_is_not_json_leaves_the_file_unchanged(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"steps": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"steps": math.nan})
    assert read_json(path, None) == {"steps": 1}
    assert read_json(tmp_path / "absent.json", []) == []
