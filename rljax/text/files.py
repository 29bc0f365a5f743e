"""The contents of a Hugging Face folder's files that belong to its tokenizer."""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rljax._folders import inside, parse_json, read_json

TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", TEMPLATE, "chat_template.json",
         GENERATION)  # fmt: skip
"""Files that belong to a tokenizer; config.json, which belongs to the model, may name stop tokens too."""
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that tokenizer_config.json names, and that chat templates may use."""


class TokenizerFiles:
    """The files of `folder`, parsed; errors name the file."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.contents = {name: inside(folder, name).read_bytes() for name in FILES if (folder / name).is_file()}
        self.spec = self._object(TOKENIZER)
        self.settings = {**self._object("special_tokens_map.json"), **self._object("tokenizer_config.json")}
        self._config = read_json(folder, "config.json") if (folder / "config.json").is_file() else {}

    def _object(self, name: str) -> dict[str, Any]:
        return parse_json(self.contents[name], self.folder / name) if name in self.contents else {}

    def generation(self) -> dict[str, Any]:
        """generation_config.json; empty if the folder has none."""
        return self._object(GENERATION)

    def named(self) -> dict[str, str]:
        """The special tokens with a name, such as {"eos_token": "<|im_end|>"}."""
        return {name: content(self.settings[name]) for name in NAMED if self.settings.get(name)}

    def added_tokens(self) -> list[dict[str, Any]]:
        """The added tokens as in tokenizer.json, where tokenizer_config.json may add some or change their flags."""
        added = {token["id"]: token for token in self.spec.get("added_tokens", [])}
        for i, token in (self.settings.get("added_tokens_decoder") or {}).items():
            added[int(i)] = {**blank_token(int(i), ""), **token}
        special = {*self.named().values(), *self._unnamed()}
        return [
            {**token, "special": token["special"] or token["content"] in special} for _, token in sorted(added.items())
        ]

    def _unnamed(self) -> Iterable[str]:
        for name in ("additional_special_tokens", "extra_special_tokens"):
            tokens = self.settings.get(name) or []
            yield from map(content, tokens.values() if isinstance(tokens, dict) else tokens)

    def stop_ids(self, eos: int | None) -> tuple[int, ...]:
        """The distinct stop tokens of generation_config.json, then of config.json, then the tokenizer's `eos`."""
        nested = self._config.get("text_config") or {}
        listed = (as_list(x.get("eos_token_id")) for x in (self.generation(), self._config, nested))
        return tuple(dict.fromkeys(itertools.chain(*listed, as_list(eos))))

    def template(self) -> str | None:
        """The source of the chat template; None if the folder has none."""
        if TEMPLATE in self.contents:
            return self._text(TEMPLATE)
        template = self._object("chat_template.json").get("chat_template") or self.settings.get("chat_template")
        if isinstance(template, list):
            named = {one["name"]: one["template"] for one in template}
            template = named.get("default")
        if not isinstance(template, str | None):
            raise ValueError(f"{self.folder}: chat_template = {template!r}: expected a string")
        return template

    def _text(self, name: str) -> str:
        try:
            return self.contents[name].decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.folder / name}: expected UTF-8 ({error})") from error


def as_list(x: Any) -> list[Any]:
    """`x` if it is a list, [] if it is None, and [x] otherwise."""
    return x if isinstance(x, list) else [] if x is None else [x]


def content(token: str | Mapping[str, Any]) -> str:
    """The text of a token that is written as a string or as an object with its flags."""
    return token if isinstance(token, str) else token["content"]


def blank_token(i: int, text: str) -> dict[str, Any]:
    """The special token `i` with `text`, as in tokenizer.json."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": text, **flags, "special": True}
