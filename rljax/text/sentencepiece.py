"""A SentencePiece tokenizer with an exact round trip: decode(encode(text)) == text for any Unicode text."""

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from rljax.text.protocol import Message, NoTemplateError

FILE = "tokenizer.model"
PAD, EOS, UNK, BOS = range(4)

_SPACE = "\u2581"  # SentencePiece's symbol for a space; the character itself is encoded as bytes
_SPACE_BYTES = ("<0xE2>", "<0x96>", "<0x81>")
_PROBE = " a\t  b\n\u2581\ufb01\u00e9\U0001f600 12 "  # spaces, bytes and a ligature that normalization would break


class Tokenizer:
    """Converts text to token ids and back, with the SentencePiece model in the bytes `model_proto`.

    The special ids are pad 0, eos 1, unk 2 and bos 3. `Tokenizer.train` trains a model.

    >>> tokenizer = Tokenizer.train(["f1 st;"], symbols=["f1 ", "s", "t", ";"], vocab_size=300)
    >>> len(tokenizer.encode("f1 ts;")), tokenizer.decode(tokenizer.encode("f1 ts; naïve"))
    (4, 'f1 ts; naïve')
    """

    def __init__(self, model_proto: bytes):
        """Raises ValueError if the bytes are not a model, or the model has other special ids or no exact round trip."""
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"model_proto ({len(model_proto)} bytes): expected the bytes of a SentencePiece model"
            ) from error
        self.model_proto = model_proto
        model = self._model
        special = (model.pad_id(), model.eos_id(), model.unk_id(), model.bos_id())
        if special != (PAD, EOS, UNK, BOS):
            raise ValueError(f"model_proto: (pad, eos, unk, bos) = {special}: expected {(PAD, EOS, UNK, BOS)}, as "
                             "in Tokenizer.train")  # fmt: skip
        self._space_ids = [model.piece_to_id(piece) for piece in _SPACE_BYTES]
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise ValueError("model_proto: expected a model with decode(encode(text)) == text; train it with "
                             "byte_fallback, no normalization and no dummy prefix, as in Tokenizer.train")  # fmt: skip

    @classmethod
    def train(cls, texts: Iterable[str], *, symbols: Sequence[str] = (), vocab_size: int) -> "Tokenizer":
        """Trains a BPE model with byte fallback on `texts`, deterministically.

        Each of `symbols` is always one token and is never merged. `vocab_size` is an upper bound on the number of
        tokens: 4 special tokens, 256 bytes, the symbols, the characters of the texts, then merges. Raises ValueError
        if there are no texts or if `vocab_size` is too small.
        """
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts), model_writer=written, model_type="bpe",
                vocab_size=vocab_size, hard_vocab_limit=False, byte_fallback=True, required_chars=_SPACE,
                normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
                split_digits=True, user_defined_symbols=[symbol.replace(" ", _SPACE) for symbol in symbols],
                pad_id=PAD, eos_id=EOS, unk_id=UNK, bos_id=BOS, num_threads=1, minloglevel=2,
                max_sentence_length=2**30,  # in bytes, the maximum; SentencePiece skips longer texts
            )  # fmt: skip
        except RuntimeError as error:
            if "sentences_.empty" in str(error):
                raise ValueError("texts: expected at least one nonempty text") from error
            raise ValueError(f"vocab_size = {vocab_size}: expected room for 4 special tokens, 256 bytes, "
                             f"{len(symbols)} symbols and the text's characters ({error})") from error  # fmt: skip
        return cls(written.getvalue())

    @property
    def vocab_size(self) -> int:
        """Number of tokens; token ids are 0 … vocab_size − 1."""
        return self._model.vocab_size()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (EOS,)

    @property
    def pad_id(self) -> int:
        return PAD

    @property
    def bos_id(self) -> int:
        return BOS

    @property
    def begin_ids(self) -> tuple[int, ...]:
        return ()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_proto).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without bos and eos. Raises ValueError if the text contains a lone surrogate."""
        try:
            first, *rest = text.encode().decode().split(_SPACE)
        except UnicodeEncodeError as error:
            raise ValueError(f"text = {text!r}: expected Unicode, found a lone surrogate at {error.start}") from error
        ids = self._model.encode(first)
        for part in rest:
            ids += self._space_ids + self._model.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. The ids pad, eos and bos are skipped; bytes that are not valid UTF-8 become U+FFFD.

        Raises ValueError if an id is outside 0 … vocab_size − 1.
        """
        ids = [int(i) for i in ids]
        if wrong := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"ids contains {wrong[0]}: expected token ids in 0 … {self.vocab_size - 1}")
        return self._model.decode(ids)

    def chat(self, messages: Sequence[Message], *, generate: bool = True) -> list[int]:
        """Raises NoTemplateError, since a SentencePiece model has none."""
        raise NoTemplateError(f"messages ({len(messages)}): expected a tokenizer with a chat template, but this "
                             "SentencePiece model has none; write the prompt as text")  # fmt: skip

    def save(self, folder: Path) -> None:
        (folder / FILE).write_bytes(self.model_proto)
