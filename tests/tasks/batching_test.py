import dataclasses
import itertools
import json

import numpy as np
import pytest

from rljax.tasks import Problem
from rljax.tasks.batching import batches, left_padded, pack, prompt_ids
from rljax.tasks.strings import string_tokenizer
from rljax.tasks.strings.problems import demonstrations
from rljax.text import Tokenizer

TOKENIZER = string_tokenizer()
PROBLEMS = list(demonstrations(0, 200))


def test_pack_by_hand():
    problems = [Problem("f3 st;", "t", "f3 t"), Problem("f9 s;", "s", "f9 s"), Problem("f9 stuv;", "vuts", "f9 vuts")]
    rows = pack(problems, TOKENIZER, 14)
    encode = TOKENIZER.encode
    first = [*encode("f3 st;"), *encode("f3 t"), 1, *encode("f9 s;"), *encode("f9 s"), 1]  # 7 + 6 tokens
    second = [*encode("f9 stuv;"), *encode("f9 vuts"), 1]
    np.testing.assert_array_equal(rows["tokens"], [[*first, 0], [*second, 0, 0]])
    np.testing.assert_array_equal(rows["segment_ids"], [[1] * 7 + [2] * 6 + [0], [1] * 12 + [0, 0]])
    expected = [[0] * 4 + [1] * 3 + [0] * 3 + [1] * 3 + [0], [0] * 6 + [1] * 6 + [0, 0]]
    np.testing.assert_array_equal(rows["mask"], np.array(expected, bool))
    assert [rows[name].dtype for name in ("tokens", "segment_ids", "mask")] == [np.int32, np.int32, np.bool_]


def test_pack_loses_no_problem_and_wastes_little():
    rows = pack(PROBLEMS, TOKENIZER, 42)
    found = []
    for tokens, segment_ids, mask in zip(rows["tokens"], rows["segment_ids"], rows["mask"], strict=True):
        assert not mask[segment_ids == 0].any()
        for segment in range(1, segment_ids.max() + 1):
            here = segment_ids == segment
            found.append((TOKENIZER.decode(tokens[here & ~mask]), TOKENIZER.decode(tokens[here & mask])))
            assert tokens[here][-1] == 1
            assert mask[here][-1]
    assert sorted(found) == sorted((p.prompt, p.solution) for p in PROBLEMS)
    assert (rows["segment_ids"] > 0).mean() > 0.9


def test_demonstrations_end_as_the_task_says():
    ids = TOKENIZER.encode("ab")
    rows = pack([Problem("a", "b", "ab")], TOKENIZER, 8, stop_ids=(7, 1))
    assert rows["tokens"][0][rows["mask"][0]].tolist() == [*ids, 7]


def test_prompts_are_padded_on_the_left():
    short, long = TOKENIZER.encode("f9 s;"), TOKENIZER.encode("f3 f12 stu;")
    rows = left_padded([long, short], 8)
    np.testing.assert_array_equal(rows["tokens"], [[0] * 2 + long, [0] * 5 + short])
    np.testing.assert_array_equal(rows["segment_ids"], [[0] * 2 + [1] * 6, [0] * 5 + [1] * 3])
    assert rows["tokens"].dtype == rows["segment_ids"].dtype == np.int32


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match=r"row_length = 10: expected room for 'f9 stuv;' with its solution, 12 tok"):
        pack([Problem("f9 stuv;", "vuts", "f9 vuts")], TOKENIZER, 10)
    with pytest.raises(ValueError, match=r"'f9 s;' has no solution"):
        pack([Problem("f9 s;", "s")], TOKENIZER, 10)
    with pytest.raises(ValueError, match="problems is empty"):
        pack([], TOKENIZER, 10)
    with pytest.raises(ValueError, match="a prompt is empty"):
        pack([Problem("", "s", "s")], TOKENIZER, 10)


ROWS = {"tokens": np.arange(20, dtype=np.int32).reshape(10, 2), "index": np.arange(10, dtype=np.int32)}


def draw(iterator, count):
    return [next(iterator)["index"].tolist() for _ in range(count)]


def test_batches_take_every_row_once_an_epoch_and_shuffle_each_anew():
    drawn = list(itertools.chain(*draw(batches(ROWS, 4, seed=0), 5)))  # two epochs of 10 rows in 5 batches of 4
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    batch = next(batches(ROWS, 4, seed=0))
    np.testing.assert_array_equal(batch["tokens"], ROWS["tokens"][batch["index"]])
    assert batch["tokens"].dtype == np.int32


def test_batches_may_be_larger_than_an_epoch():
    assert sorted(next(batches(ROWS, 20, seed=0))["index"].tolist()) == sorted(2 * list(range(10)))


def test_the_seed_fixes_the_order():
    assert draw(batches(ROWS, 4, seed=3), 6) == draw(batches(ROWS, 4, seed=3), 6) != draw(batches(ROWS, 4, seed=4), 6)


@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_iterator_goes_on_exactly_from_its_state_through_json(after):
    iterator = batches(ROWS, 4, seed=0)
    draw(iterator, after)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = draw(iterator, 7)
    other = batches(ROWS, 4, seed=0)
    draw(other, 2)
    other.set_state(state)
    assert draw(other, 7) == expected
    assert draw(batches(ROWS, 4, seed=0), 7) != expected or after == 0


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_an_iterator_goes_on_exactly_around_the_end_of_an_epoch(after):
    """An epoch is two batches of 5: tests states before, at and after the ends of the first two epochs."""
    undisturbed = [next(iterator) for iterator in [batches(ROWS, 5, seed=0)] for _ in range(9)]
    iterator = batches(ROWS, 5, seed=0)
    draw(iterator, after)
    other = batches(ROWS, 5, seed=0)
    other.set_state(json.loads(json.dumps(iterator.get_state())))
    for expected in undisturbed[after:]:
        batch = next(other)
        for name in ROWS:
            np.testing.assert_array_equal(batch[name], expected[name])
    for epoch in range(4):
        first, second = undisturbed[2 * epoch : 2 * epoch + 2]
        assert sorted([*first["index"], *second["index"]]) == list(range(10))


@pytest.mark.parametrize("arrays", [{}, {"a": np.zeros((0, 3))}, {"a": np.zeros(3), "b": np.zeros(4)}])
def test_arrays_that_do_not_fit_are_named(arrays):
    with pytest.raises(ValueError, match=r"arrays have .* rows: expected the same number"):
        batches(arrays, 4, seed=0)


def test_batch_size_is_checked():
    with pytest.raises(ValueError, match="batch_size = 0"):
        batches(ROWS, 0, seed=0)


def test_a_text_prompt_begins_with_the_tokens_of_the_tokenizer():
    class Begins(Tokenizer):
        begin_ids = (3,)

    tokenizer = Begins(TOKENIZER.model_proto)
    problem = Problem("f9 s;", "s", "f9 s")
    assert prompt_ids(problem, tokenizer) == [3, *TOKENIZER.encode("f9 s;")]
    assert pack([problem], tokenizer, 8)["mask"][0].tolist() == [False] * 4 + [True] * 3 + [False]


def test_a_chat_that_the_tokenizer_cannot_write_is_named():
    chat = Problem("2 + 3?", "5", messages=({"role": "user", "content": "2 + 3?"},))
    with pytest.raises(ValueError, match=r"^problems: the chat of '2 \+ 3\?': messages .* has none"):
        prompt_ids(chat, TOKENIZER)


def test_a_chat_ends_as_its_template_ends_a_message():
    class Chats(Tokenizer):
        stop_ids = (1, 6)

        def chat(self, messages, *, generate=True):
            turns = [i for message in messages for i in (*self.encode(message["content"]), 6, 9)]
            return [*turns, 8] if generate else turns

    tokenizer = Chats(TOKENIZER.model_proto)
    chat = Problem("2", "3", "3", messages=({"role": "user", "content": "2"},))
    two, three = tokenizer.encode("2"), tokenizer.encode("3")
    length = len(two) + len(three) + 4
    assert pack([chat], tokenizer, length)["tokens"][0].tolist() == [*two, 6, 9, 8, *three, 6]
    assert pack([dataclasses.replace(chat, messages=())], tokenizer, length)["tokens"][0].tolist() == [
        *two, *three, 1, 0, 0, 0]  # fmt: skip
    assert pack([chat], tokenizer, length, stop_ids=(7,))["tokens"][0].tolist() == [*two, 6, 9, 8, *three, 7]
