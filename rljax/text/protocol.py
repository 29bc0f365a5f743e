"""The tokenizer interface used by tasks, training and the commands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Message = Mapping[str, Any]
"""A chat message, such as `{"role": "user", "content": "What is 1 + 2?"}`."""


class NoTemplateError(ValueError):
    """Raised by `TextTokenizer.chat` of a tokenizer without a chat template."""


class TextTokenizer(Protocol):
    """Interface of a tokenizer; `rljax.tasks.Tokenizer` (SentencePiece) implements it."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens; token ids are 0 … vocab_size − 1."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion; the first of them ends demonstrations that are not chats."""
        ...

    @property
    def pad_id(self) -> int | None:
        """The padding token; None if the tokenizer has none."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token at the beginning of a text; None if the tokenizer has none."""
        ...

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """Tokens before a prompt that is not a chat, such as Llama's BOS; `encode` does not add them."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 digest, in hexadecimal, of everything that determines token ids and chat prompts."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. No special tokens are added, and control tokens written in `text` stay text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without control tokens. Raises ValueError if an id is out of range."""
        ...

    def chat(self, messages: Sequence[Message], *, generate: bool = True) -> list[int]:
        """Token ids of a chat; with `generate`, they end where the assistant's next message begins.

        Raises NoTemplateError if the tokenizer has no chat template, and ValueError if the template fails.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into an existing folder, from which `load_tokenizer` reads them."""
        ...


_FEW = 64


def fits(tokenizer: TextTokenizer, rows: int) -> bool:
    """True if a table of `rows` embeddings has one for each token that a text or a completion can hold.

    A few control tokens at the end may be without one: Gemma 3's tokenizer has a token for images, which its models
    without images do not know.
    """
    beyond = range(rows, tokenizer.vocab_size)
    return len(beyond) <= _FEW and not any(i in tokenizer.stop_ids or tokenizer.decode([i]) for i in beyond)
