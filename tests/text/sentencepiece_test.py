import random

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from rljax.tasks import Tokenizer
from rljax.tasks.strings import string_tokenizer
from rljax.tasks.strings.functions import FUNCTIONS, LETTERS
from rljax.tasks.strings.problems import held_out
from rljax.text import NoTemplateError

STRINGS = string_tokenizer()
ENGLISH = ["How many hens does the farmer have?", "The farmer has 12 hens. ", "naïve façade, 東京"] * 20
WORDS = Tokenizer.train(ENGLISH, vocab_size=400)
AWKWARD = [
    "",
    " ",
    "  a  b ",
    "\u2581",
    "a\u2581 b",
    "\x00\t\r\n",
    "\u2047",
    "<s></s><pad>",
    "<0x41>",
    "\ufffd",
    "f3  f",
    "ﬁ½",
]


@pytest.mark.parametrize("tokenizer", [STRINGS, WORDS], ids=["strings", "words"])
class TestRoundTrip:
    @given(text=st.text())
    def test_any_unicode(self, tokenizer, text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(4 <= i < tokenizer.vocab_size for i in ids)

    @given(text=st.text(alphabet="f123 ;stuThe\u2581\u2047\n<>"))
    def test_what_the_pieces_are_made_of(self, tokenizer, text):
        assert tokenizer.decode(tokenizer.encode(text)) == text

    @pytest.mark.parametrize("text", AWKWARD)
    def test_awkward(self, tokenizer, text):
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_a_tokenizer_is_restored_from_its_bytes(self, tokenizer):
        again = Tokenizer(tokenizer.model_proto)
        assert again.vocab_size == tokenizer.vocab_size
        assert again.encode("f3 The hens") == tokenizer.encode("f3 The hens")


def test_function_names_are_whole_and_letters_single():
    for problem in held_out("level 4", 0, 50):
        assert len(STRINGS.encode(problem.prompt)) == 4 + len(problem.prompt.split()[-1])
    ids = [STRINGS.encode(text) for text in (*(f"{name} " for name in FUNCTIONS), *LETTERS, ";")]
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids}) == 25 + 8 + 1
    assert STRINGS.vocab_size == 4 + 256 + 25 + 8 + 1 + 1


def test_merges_are_learned_and_spaces_are_pieces():
    assert len(WORDS.encode("The farmer")) < 10
    assert WORDS.encode("b b") == WORDS.encode("b") + WORDS.encode(" ") + WORDS.encode("b") != WORDS.encode("bb")


def test_special_tokens_are_silent():
    ids = STRINGS.encode("f3 st")
    assert STRINGS.decode([3, 0, *ids, 1, 0]) == "f3 st"


def test_training_is_deterministic():
    assert string_tokenizer().model_proto == STRINGS.model_proto
    assert Tokenizer.train(ENGLISH, vocab_size=400).model_proto == WORDS.model_proto
    assert Tokenizer.train(ENGLISH, vocab_size=300).model_proto != WORDS.model_proto


def test_decode_gives_something_for_any_ids():
    assert STRINGS.decode(STRINGS.encode("é")[:1]) == "\ufffd"
    assert isinstance(STRINGS.decode(range(STRINGS.vocab_size)), str)


@pytest.mark.parametrize("ids", [[295], [-1]])
def test_decode_names_a_wrong_id(ids):
    with pytest.raises(ValueError, match=r"ids contains .*: expected token ids in 0 … 294"):
        STRINGS.decode(ids)


def test_encode_names_a_lone_surrogate():
    with pytest.raises(ValueError, match="lone surrogate at 1"):
        STRINGS.encode("a\ud800")


def test_training_names_the_bad_argument():
    with pytest.raises(ValueError, match=r"vocab_size = 100: expected room"):
        Tokenizer.train(["abc"], vocab_size=100)
    with pytest.raises(ValueError, match="at least one nonempty text"):
        Tokenizer.train([], vocab_size=300)


def _foreign(tmp_path, **settings) -> bytes:
    (tmp_path / "text").write_text("\n".join(ENGLISH))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), vocab_size=300, hard_vocab_limit=False,
        model_type="bpe", minloglevel=2, **settings,
    )  # fmt: skip
    return (tmp_path / "m.model").read_bytes()


def test_models_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected the bytes of a SentencePiece model"):
        Tokenizer(b"not a model")
    with pytest.raises(ValueError, match=r"expected \(0, 1, 2, 3\)"):
        Tokenizer(_foreign(tmp_path, byte_fallback=True))
    with pytest.raises(ValueError, match=r"expected a model with decode\(encode\(text\)\) == text"):
        Tokenizer(_foreign(tmp_path, byte_fallback=True, pad_id=0, eos_id=1, unk_id=2, bos_id=3))


@pytest.mark.parametrize("length", [4000, 4193, 6000, 100_000])
def test_texts_of_any_length_are_learned_from(length):
    """The text is a hundred words of four letters and a space, so a token covers five characters."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=4)) for _ in range(100)]
    text = " ".join(rng.choices(words, k=length // 5 + 1))[:length]
    assert len(Tokenizer.train([text], vocab_size=1000).encode(text)) == pytest.approx(length / 5, rel=0.02)


def test_a_long_text_without_a_space_is_learned_from():
    text = "ab" * 40_000
    assert len(Tokenizer.train([text], vocab_size=300).encode(text)) < 20_000


def test_a_model_has_no_chat_template():
    with pytest.raises(NoTemplateError, match="write the prompt as text"):
        WORDS.chat([{"role": "user", "content": "x"}])
