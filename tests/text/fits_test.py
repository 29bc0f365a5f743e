from rljax.text import fits, load_tokenizer
from tests.text.folders import byte_level, write


def tokenizer_with(folder, *texts, **settings):
    """A tokenizer with special tokens of these texts at the end, and its number of tokens without them."""
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(list(texts))
    return load_tokenizer(write(folder, tokenizer, tokenizer_config={"eos_token": "<|end|>"} | settings)), size


def test_a_control_token_may_have_no_row(tmp_path):
    tokenizer, size = tokenizer_with(tmp_path, "<image>")
    assert tokenizer.vocab_size == size + 1
    assert [fits(tokenizer, rows) for rows in (size - 1, size, size + 1)] == [False, True, True]  # </think> is text
    assert max(tokenizer.encode("<image>")) < size


def test_a_stop_token_needs_a_row(tmp_path):
    tokenizer, size = tokenizer_with(tmp_path, "<stop>", eos_token="<stop>")
    assert [fits(tokenizer, rows) for rows in (size, size + 1)] == [False, True]


def test_many_tokens_without_rows_are_refused(tmp_path):
    tokenizer, size = tokenizer_with(tmp_path, *(f"<{i}>" for i in range(65)))
    assert [fits(tokenizer, rows) for rows in (size, size + 1)] == [False, True]
