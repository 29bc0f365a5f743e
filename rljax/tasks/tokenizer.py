"""SentencePiece with an exact round trip: decode(encode(text)) == text for any Unicode."""

import io
from collections.abc import Iterable, Sequence

import sentencepiece

PAD, EOS, UNK, BOS = range(4)

_SPACE = "\u2581"  # SentencePiece's own sign for a space; found in a text, it is spelled in bytes to keep them apart
_SPACE_BYTES = ("<0xE2>", "<0x96>", "<0x81>")
_PROBE = " a\t  b\n\u2581\ufb01\u00e9\U0001f600 12 "  # spaces, a ligature that normalizing would break, bytes


class Tokenizer:
    """Text to token ids and back; pad 0, eos 1, unk 2, bos 3. Made of the bytes of a SentencePiece model alone.

    >>> tokenizer = Tokenizer.train(["f1 st;"], symbols=["f1 ", "s", "t", ";"], vocab_size=300)
    >>> len(tokenizer.encode("f1 ts;")), tokenizer.decode(tokenizer.encode("f1 ts; naïve"))
    (4, 'f1 ts; naïve')
    """

    def __init__(self, model_proto: bytes):
        """Raises ValueError for bytes that are no model, or one with other special tokens or no exact round trip."""
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"model_proto ({len(model_proto)} bytes): expected a SentencePiece model's bytes"
            ) from error
        self.model_proto = model_proto
        model = self._model
        special = (model.pad_id(), model.eos_id(), model.unk_id(), model.bos_id())
        if special != (PAD, EOS, UNK, BOS):
            raise ValueError(f"model_proto: (pad, eos, unk, bos) = {special}: expected {(PAD, EOS, UNK, BOS)}, as "
                             "Tokenizer.train gives them")  # fmt: skip
        self._space_ids = [model.piece_to_id(piece) for piece in _SPACE_BYTES]
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise ValueError("model_proto: this model does not give a text back exactly; train it with byte_fallback "
                             "and without normalization or a dummy prefix, as Tokenizer.train does")  # fmt: skip

    @classmethod
    def train(cls, texts: Iterable[str], *, symbols: Sequence[str] = (), vocab_size: int) -> "Tokenizer":
        """A BPE model of the texts with byte fallback; the same texts give the same bytes.

        `symbols` are tokens whole, wherever they stand, and enter no merge. `vocab_size` is an upper bound; it holds
        the 4 special tokens, 256 bytes, the symbols, the text's characters, and merges in the rest. Raises ValueError
        where there is no text or no room.
        """
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts), model_writer=written, model_type="bpe",
                vocab_size=vocab_size, hard_vocab_limit=False, byte_fallback=True, required_chars=_SPACE,
                normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
                split_digits=True, user_defined_symbols=[symbol.replace(" ", _SPACE) for symbol in symbols],
                pad_id=PAD, eos_id=EOS, unk_id=UNK, bos_id=BOS, num_threads=1, minloglevel=2,
                max_sentence_length=2**30,  # bytes, SentencePiece's greatest; it leaves out longer texts
            )  # fmt: skip
        except RuntimeError as error:
            if "sentences_.empty" in str(error):
                raise ValueError("texts: expected at least one that is not empty") from error
            raise ValueError(f"vocab_size = {vocab_size}: expected room for 4 special tokens, 256 bytes, "
                             f"{len(symbols)} symbols and the text's characters ({error})") from error  # fmt: skip
        return cls(written.getvalue())

    @property
    def vocab_size(self) -> int:
        """The number of token ids: 0 … vocab_size − 1."""
        return self._model.vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of a text; no bos, no eos. Raises ValueError for a lone surrogate, which is no Unicode text."""
        try:
            first, *rest = text.encode().decode().split(_SPACE)
        except UnicodeEncodeError as error:
            raise ValueError(f"text = {text!r}: a lone surrogate at {error.start} is no Unicode text") from error
        ids = self._model.encode(first)
        for part in rest:
            ids += self._space_ids + self._model.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; pad, eos and bos are silent, and bytes that are no UTF-8 read as U+FFFD.

        Raises ValueError for an id outside 0 … vocab_size − 1.
        """
        ids = [int(i) for i in ids]
        if wrong := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"ids: {wrong[0]} is no token; expected 0 … {self.vocab_size - 1}")
        return self._model.decode(ids)
