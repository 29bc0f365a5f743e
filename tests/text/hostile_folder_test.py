"""Faults of a tokenizer's folder that are refused by name."""

import shutil
from pathlib import Path

import pytest

from rljax.tasks import Tokenizer as SentencePiece
from rljax.text import load_tokenizer
from tests.text.folders import CHATML, with_template, write

JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json",
        "generation_config.json", "config.json")  # fmt: skip


@pytest.mark.parametrize("name", [*JSON, "chat_template.jinja"])
def test_a_link_out_of_the_folder(name, tmp_path):
    folder, secret = write(tmp_path / "model"), tmp_path / "secret"
    if (folder / name).exists():
        shutil.move(folder / name, secret)
    else:
        secret.write_text("{}")
    (folder / name).symlink_to(secret)
    with pytest.raises(ValueError, match=f"{name}: expected a file in this folder, found a link to .*secret"):
        load_tokenizer(folder)


def test_a_link_of_a_sentencepiece_model(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(SentencePiece.train(["a"], vocab_size=300).model_proto)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.model").symlink_to(secret)
    with pytest.raises(ValueError, match=r"tokenizer.model: expected a file in this folder, found a link"):
        load_tokenizer(tmp_path / "model")


def test_links_into_a_hub_cache(tmp_path):
    (tmp_path / "snapshots").mkdir()
    folder = with_template(write(tmp_path / "snapshots" / "1"), CHATML)
    expected = load_tokenizer(folder).digest
    shutil.copytree(folder, tmp_path / "blobs")
    for path in folder.iterdir():
        path.unlink()
        path.symlink_to(Path("../../blobs") / path.name)
    assert load_tokenizer(folder).digest == expected


@pytest.mark.parametrize("name", JSON)
def test_deep_json(name, tmp_path):
    folder = write(tmp_path)
    (folder / name).write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match=f"{name}: expected JSON"):
        load_tokenizer(folder)


def test_a_template_that_is_not_text(tmp_path):
    with pytest.raises(ValueError, match="chat_template = 5: expected a string"):
        load_tokenizer(write(tmp_path, tokenizer_config={"eos_token": "<|end|>", "chat_template": 5}))
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"chat_template.jinja: expected UTF-8"):
        load_tokenizer(tmp_path)
