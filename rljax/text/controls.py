"""Control tokens under secret names, so that no text of a user can contain one."""

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

_PRIVATE = 0xF900 - 0xE000
"""Number of the private-use characters that begin at U+E000."""


class Controls:
    """The control tokens of a tokenizer, by the text that stands for them, such as `<|im_end|>`.

    `rename` gives each of them a random name of private-use characters in a tokenizer.json, so that its usual text is
    encoded as any other text. `mark` breaks up that text in messages, and `reveal` writes the names in a rendered chat.
    Each token has at least two characters, since a single one cannot be broken up.
    """

    def __init__(self, tokens: Sequence[str]):
        nonce = "".join(_private(secrets.randbelow(_PRIVATE)) for _ in range(8))
        self._mark, *names = (
            f"{nonce}{_private(i // _PRIVATE)}{_private(i % _PRIVATE)}" for i in range(len(tokens) + 1)
        )
        self._names = dict(zip(tokens, names, strict=True))
        longest_first = sorted(tokens, key=len, reverse=True)
        self._found = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) matches nothing
        self._begins = re.compile(f"(?={self._found.pattern})")  # also if two of them overlap
        self._starts = {x[:n] for x in self._names for n in range(1, len(x))}
        self._ends = {x[n:] for x in self._names for n in range(1, len(x))}
        self._longest = max(map(len, self._names), default=0)

    def rename(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """`spec`, a tokenizer.json, with the secret names in its added tokens and its model, without post-processing.

        Merges of a BPE model that make a control token are removed.
        """
        names, model = self._names, dict(spec["model"])
        if isinstance(vocab := model.get("vocab"), Mapping):
            model["vocab"] = {names.get(piece, piece): i for piece, i in vocab.items()}
        elif isinstance(vocab, list):
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
        if "merges" in model:
            pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
            model["merges"] = [list(pair) for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        added = [
            {**token, "content": names[token["content"]], "special": True} if token["content"] in names else token
            for token in spec["added_tokens"]
        ]
        return {
            **spec,
            "model": model,
            "added_tokens": added,
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }

    def mark(self, value: Any) -> Any:
        """`value`, a tree of messages, with a mark in each text of a control token and in each beginning or end of one.

        Beginnings at the end of a string and ends at its start are marked because a template may join strings.
        """
        if isinstance(value, str):
            return self._mark_text(value)
        if isinstance(value, dict):
            return {self._mark_text(key) if self._found.search(key) else key: self.mark(x) for key, x in value.items()}
        return [self.mark(x) for x in value] if isinstance(value, list) else value

    def _mark_text(self, text: str) -> str:
        at = {match.start() + 1 for match in self._begins.finditer(text)}
        begin, end = len(text) - len(text.lstrip()), len(text.rstrip())
        for n in range(1, min(self._longest, end - begin + 1)):
            at |= {end - n + 1} if text[end - n : end] in self._starts else set()
            at |= {begin + n - 1} if text[begin : begin + n] in self._ends else set()
        for i in sorted(at, reverse=True):
            text = text[:i] + self._mark + text[i:]
        return text

    def reveal(self, rendered: str) -> str:
        """`rendered`, a chat of marked messages, with names for the template's control tokens, and without marks."""
        return self._found.sub(lambda match: self._names[match[0]], rendered).replace(self._mark, "")


def _private(i: int) -> str:
    """The private-use character number `i`."""
    return chr(0xE000 + i)
