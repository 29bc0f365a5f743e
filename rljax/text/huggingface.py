"""Tokenizers of Hugging Face folders."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from rljax.text.controls import Controls
from rljax.text.files import GENERATION, TOKENIZER, TokenizerFiles, as_list, blank_token
from rljax.text.protocol import Message, NoTemplateError
from rljax.text.template import ChatTemplate


class HuggingFaceTokenizer:
    """The tokenizer of a folder with tokenizer.json.

    A control token is a named token such as `bos_token`, or an added token that is marked as special or stops a
    completion. `decode` leaves control tokens out, and only the template of `chat` can write one; text never does.
    """

    def __init__(self, folder: Path):
        """Raises ValueError if a file of `folder` has a fault, or if no file names a stop token."""
        files = TokenizerFiles(folder)
        try:
            self._read(files)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"tokenizer files of {folder}: expected the format of the library `transformers` "
                             f"({error!r})") from error  # fmt: skip

    def _read(self, files: TokenizerFiles) -> None:
        self._files = files
        added, named = files.added_tokens(), files.named()
        ids = {**_vocabulary(files.spec["model"]), **{token["content"]: token["id"] for token in added}}
        self._vocab_size = max(ids.values()) + 1
        self._pad_id, self._bos_id = (ids.get(named.get(name, "")) for name in ("pad_token", "bos_token"))
        self._stop_ids = files.stop_ids(ids.get(named.get("eos_token", "")))
        self._check_stops()
        added = _with_special(added, self._stop_ids, {ids[text]: text for text in named.values() if text in ids})
        self._controls = Controls(
            [token["content"] for token in added if token["special"] and len(token["content"]) > 1]
        )
        self._tokenizer = self._build({**files.spec, "added_tokens": added})
        self._named, self._template = named, files.template()
        self._chat = None if self._template is None else ChatTemplate(self._template, name=str(files.folder))
        self._added = added

    def _check_stops(self) -> None:
        stops, folder = self._stop_ids, self._files.folder
        if not stops or any(type(i) is not int or not 0 <= i < self._vocab_size for i in stops):
            raise ValueError(f"stop tokens of {folder} = {list(stops)}: expected at least one id in 0 … "
                             f"{self._vocab_size - 1}, as eos_token_id in generation_config.json or config.json, or as "
                             "eos_token in tokenizer_config.json")  # fmt: skip

    def _build(self, spec: Mapping[str, Any]) -> tokenizers.Tokenizer:
        """The tokenizer in which control tokens have secret names."""
        path = self._files.folder / TOKENIZER
        secret = self._controls.rename(spec)
        try:
            built = tokenizers.Tokenizer.from_str(json.dumps(secret))
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"{path}: expected a tokenizer of the library `tokenizers` ({error})") from error
        for token, hidden in zip(spec["added_tokens"], secret["added_tokens"], strict=True):
            if built.token_to_id(hidden["content"]) != token["id"]:
                raise ValueError(f"{path}: added token {token['content']!r} has id {token['id']}: expected "
                                 f"{built.token_to_id(hidden['content'])}, its place in the vocabulary")  # fmt: skip
        return built

    @property
    def vocab_size(self) -> int:
        """The largest token id plus 1."""
        return self._vocab_size

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self._stop_ids

    @property
    def pad_id(self) -> int | None:
        return self._pad_id

    @property
    def bos_id(self) -> int | None:
        return self._bos_id

    @property
    def begin_ids(self) -> tuple[int, ...]:
        return self._begin_ids

    @cached_property
    def _begin_ids(self) -> tuple[int, ...]:
        """The tokens that the post-processor of tokenizer.json writes before a text."""
        plain = tokenizers.Tokenizer.from_str(json.dumps(self._files.spec))
        text, whole = (plain.encode("a", add_special_tokens=special).ids for special in (False, True))
        return tuple(whole[: whole.index(text[0])]) if text else ()

    @property
    def digest(self) -> str:
        rest = [self._added, self._named, self._template, self._stop_ids]
        return hashlib.sha256(self._files.contents[TOKENIZER] + json.dumps(rest, sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, of which none is a control token. Raises ValueError if it contains a lone surrogate."""
        return self._encode(text, "text")

    def _encode(self, text: str, name: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} = {text!r}: expected Unicode, found a lone surrogate at {error.start}") from error
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without control tokens; bytes that are not valid UTF-8 become U+FFFD.

        Raises ValueError if an id is outside 0 … vocab_size − 1.
        """
        ids = [int(i) for i in ids]
        if wrong := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"ids contains {wrong[0]}: expected token ids in 0 … {self.vocab_size - 1}")
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def chat(self, messages: Sequence[Message], *, generate: bool = True) -> list[int]:
        """Token ids of a chat; with `generate`, they end where the assistant's next message begins.

        Each message has a `role` and usually `content`, a string or a list of parts {"type": "text", "text": …}. Raises
        ValueError if a message is not of this form, or if the folder has no chat template, or if the template fails.
        """
        if self._chat is None:
            raise NoTemplateError(f"messages ({len(messages)}): expected a tokenizer with a chat template, but "
                             f"{self._files.folder} has none; write the prompt as text")  # fmt: skip
        variables = {"messages": self._controls.mark(_plain_messages(messages)), "tools": None, "documents": None,
                     "add_generation_prompt": generate, **self._named}  # fmt: skip
        return self._encode(self._controls.reveal(self._chat.render(variables)), "rendered chat")

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into an existing folder; generation_config.json lists all stop tokens."""
        for name, contents in self._files.contents.items():
            (folder / name).write_bytes(contents)
        generation = self._files.generation()
        if tuple(as_list(generation.get("eos_token_id"))) != self.stop_ids:
            listed = {**generation, "eos_token_id": list(self.stop_ids)}
            (folder / GENERATION).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    vocab = model["vocab"]
    return dict(vocab) if isinstance(vocab, Mapping) else {piece: i for i, (piece, _) in enumerate(vocab)}


def _with_special(
    added: Sequence[dict[str, Any]], stop_ids: Sequence[int], named: Mapping[int, str]
) -> list[dict[str, Any]]:
    """The `added` tokens and those of `named`, sorted by id; those in `stop_ids` or `named` are marked as special."""
    found = {i: blank_token(i, text) for i, text in named.items()}
    for token in added:
        i = token["id"]
        found[i] = {**token, "special": token["special"] or i in stop_ids or i in named}
    return [found[i] for i in sorted(found)]


def _plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """`messages` as JSON values, without entries that are None."""
    if isinstance(messages, str | Mapping) or not messages:
        raise ValueError(f"messages = {messages!r}: expected a list of at least one message")
    return [_plain_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _plain_message(message: Message, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"{name} = {message!r}: expected a mapping with `role`, a string, and `content`")
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else []
    texts = all(isinstance(x, Mapping) and x.get("type") == "text" and isinstance(x.get("text"), str) for x in parts)
    if not (content is None or isinstance(content, str | list | tuple)) or not texts:
        raise ValueError(f"{name}[\"content\"] = {content!r}: expected a string or a list of "
                         "{\"type\": \"text\", \"text\": …}")  # fmt: skip
    return {key: _plain(value, f"{name}[{key!r}]") for key, value in message.items() if value is not None}


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(x, name) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x, name) for x in value]
    raise ValueError(f"{name} contains {value!r}: expected strings, numbers, lists and mappings")
