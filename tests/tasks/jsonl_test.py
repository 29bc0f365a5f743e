import json

import pytest

from rljax.tasks import JsonlTask, Problem, Tokenizer, exact_match
from rljax.tasks.batching import prompt_ids
from rljax.tasks.jsonl.reader import read_jsonl
from tests.tasks.chats import chat_tokenizer

ROWS = [{"prompt": f"{a} + {b} = ", "answer": str(a + b)} for a in range(6) for b in range(6)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "sums.jsonl", ROWS)


def load(path, **settings):
    return JsonlTask(path, data_dir=path.parent / "data", **settings).load()


def test_load(file):
    data = load(file)
    prompts = {p.prompt: p.answer for p in data.prompts}
    held_out = {p.prompt: p.answer for p in data.held_out["held out"]}
    assert prompts | held_out == {row["prompt"]: row["answer"] for row in ROWS}
    assert (len(prompts), len(held_out)) == (32, 4)
    assert data.demonstrations == []
    assert data.reward is exact_match
    assert data.checks == {}
    assert data.headline == "held out"
    assert data.tokenizer.decode(data.tokenizer.encode("3 + 4 = 7")) == "3 + 4 = 7"


def test_the_reward_is_any_function(file):
    assert load(file, reward=lambda prompt, completion, answer: 0.25).reward("1 + 1 = ", "2", "2") == 0.25
    with pytest.raises(TypeError, match=r"task\.reward = 'exact'"):
        JsonlTask(file, reward="exact")


def test_rows_with_a_solution_are_demonstrations_but_not_where_they_are_held_out(tmp_path):
    rows = [{**row, "solution": f"so {row['answer']}", "level": "sums"} if i % 2 else row for i, row in enumerate(ROWS)]
    data = load(write(tmp_path / "sums.jsonl", rows), held_out_share=0.5)
    assert data.demonstrations == [p for p in data.prompts if p.solution]
    assert 0 < len(data.demonstrations) < 18
    assert {p.level for p in data.demonstrations} == {"sums"}
    assert not {p.prompt for p in data.demonstrations} & {p.prompt for p in data.held_out["held out"]}


def test_other_fields_are_the_problems_info(tmp_path):
    rows = [{**row, "tests": [{"input": i}], "info": None, "level": "sums"} for i, row in enumerate(ROWS)]
    data = load(write(tmp_path / "sums.jsonl", rows))
    found = {p.prompt: p.info for p in [*data.prompts, *data.held_out["held out"]]}
    assert found == {row["prompt"]: {"tests": row["tests"], "info": None} for row in rows}
    assert {p.level for p in data.prompts} == {"sums"}


def test_the_order_of_the_info_is_that_of_the_file(tmp_path):
    """Checkpoints hold digests of the problems, so the order must not depend on the process."""
    names = list("hgfedcba")
    (problem,) = read_jsonl(write(tmp_path / "one.jsonl", [{**ROWS[0], **dict.fromkeys(names, 1)}]))
    assert list(problem.info) == names


def test_the_task_says_what_is_solved(file):
    assert load(file, solved=lambda reward: reward > 0.9).solved(0.95)
    assert not load(file).solved(0.95)
    with pytest.raises(TypeError, match=r"task\.solved = 0\.9: expected a function"):
        JsonlTask(file, solved=0.9)


def test_equal_prompts_stay_together(tmp_path):
    data = load(write(tmp_path / "twice.jsonl", ROWS + ROWS), held_out_share=0.5)
    assert len(data.prompts) == len(data.held_out["held out"]) == 36
    assert not {p.prompt for p in data.prompts} & {p.prompt for p in data.held_out["held out"]}


def test_the_split_depends_on_its_seed_alone(file):
    assert load(file, seed=1).prompts == load(file, seed=1).prompts != load(file).prompts


def test_nothing_held_out(file):
    data = load(file, held_out_share=0)
    assert (len(data.prompts), data.held_out) == (36, {})


def test_a_changed_file_is_read_again(file):
    load(file)
    write(file, [{"prompt": "new? ", "answer": "yes"}, {"prompt": "old? ", "answer": "no"}])
    assert {p.prompt for p in load(file, held_out_share=0).prompts} == {"new? ", "old? "}


def test_unicode_and_control_characters_survive(tmp_path):
    rows = [{"prompt": "\u2581 \x00\u2028\x85 東京 \U0001f600\n", "answer": "ﬁ\r\n"}, {"prompt": "b", "answer": ""}]
    path = tmp_path / "odd.jsonl"
    path.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8", newline="")
    problems = load(path, held_out_share=0).prompts
    assert [{"prompt": p.prompt, "answer": p.answer} for p in problems] == rows


def test_a_user_supplied_tokenizer(file, tmp_path):
    own = Tokenizer.train(["1 + 2 = 3"], vocab_size=290)
    (tmp_path / "own.model").write_bytes(own.model_proto)
    assert load(file, tokenizer=str(tmp_path / "own.model")).tokenizer.model_proto == own.model_proto
    with pytest.raises(ValueError, match=r"task\.tokenizer = .*none\.model.*expected a readable"):
        load(file, tokenizer=tmp_path / "none.model")


GOOD = b'{"prompt": "a", "answer": "b"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"bad\.jsonl is empty: expected one JSON object"),
        (b"\n", r"line 1 is empty"),
        (GOOD + b"\n" + GOOD, r"line 2 is empty: expected a JSON object"),
        (GOOD + b"  \r\n", r"line 2 is empty"),
        (GOOD + b'{"prompt": "a", "ans', r"line 2 is not JSON \(Unterminated string.*'{\"prompt\": \"a\", \"ans'"),
        (GOOD + GOOD + b"\xff\xfe\n", r"line 3 is not UTF-8 \(byte 1\)"),
        (b"\xef\xbb\xbf", r"bad\.jsonl is empty: expected one JSON object"),
        (GOOD + b"\xef\xbb\xbf" + GOOD, r"line 2 is not JSON \(Unexpected UTF-8 BOM"),
        (GOOD + b'["a", "b"]\n', r"line 2 holds a list: expected an object"),
        (GOOD + b'{"prompt": "a"}\n', r"line 2 has no answer: expected both, found prompt"),
        (b"{}\n", r"line 1 has no prompt and no answer: expected both, found none"),
        (GOOD + b'{"prompt": "a", "answer": 3}\n', r"line 2: answer = 3: expected a string"),
        (GOOD + b'{"prompt": "a", "answer": ' + b"1" * 5000 + b"}\n", r"line 2 is not JSON \(Exceeds the limit \(4300"),
        (b'{"prompt": null, "answer": "b"}\n', r"line 1: prompt = None: expected a string"),
        (b'{"prompt": "a", "answer": null}\n', r"line 1: answer = None: expected a string"),
        (b'{"prompt": "a", "answer": "b", "solution": 3}\n', r"line 1: solution = 3: expected a string"),
        (b'{"prompt": "", "answer": "b"}\n', r"line 1: prompt = '': expected at least one character"),
        (b'{"prompt": "\\ud800", "answer": "b"}\n', r"line 1: prompt = .* lone surrogate at 0"),
        (b"[" * 100_000, r"line 1 is not JSON"),
    ],
    ids=lambda x: x[:30] if isinstance(x, str) else None,
)
def test_a_bad_line_is_refused_by_its_number(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_a_byte_order_mark_and_nulls_in_optional_fields(tmp_path):
    path = tmp_path / "good.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "a", "answer": "b", "solution": null, "level": null}\n' + GOOD)
    assert read_jsonl(path) == [Problem("a", "b")] * 2


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"path = .*none\.jsonl'.*No such file"):
        read_jsonl(tmp_path / "none.jsonl")


def test_a_share_that_does_not_fit_is_named(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"held_out_share = 0\.1: expected a share of the 1 distinct prompts"):
        load(path)
    with pytest.raises(ValueError, match=r"task\.held_out_share = 1: expected a number in \[0, 1\)"):
        JsonlTask(path, held_out_share=1)


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


CHATS = [
    {"prompt": chat(("system", "Add."), ("user", f"{a} + {b}"), ("assistant", str(a + b)), ("user", "And 1 more?")),
     "answer": str(a + b + 1), "tests": [a, b]}
    for a in range(4) for b in range(4)
]  # fmt: skip


def test_a_prompt_may_be_a_chat(tmp_path):
    tokenizer, path = chat_tokenizer(), write(tmp_path / "chats.jsonl", [*CHATS, ROWS[0]])
    data = JsonlTask(path, held_out_share=0.25, data_dir=tmp_path).load(tokenizer=tokenizer)
    assert data.tokenizer is tokenizer
    found = [*data.prompts, *data.held_out["held out"]]
    assert len(data.held_out["held out"]) == 4  # of 17 different prompts, although 16 of them end with one question
    assert sorted(json.dumps(p.messages) for p in found if p.messages) == sorted(
        json.dumps(row["prompt"]) for row in CHATS
    )
    assert {p.prompt for p in found} == {"And 1 more?", ROWS[0]["prompt"]}
    one = next(p for p in found if p.info.get("tests") == [2, 3])
    assert (one.answer, list(one.messages)) == ("6", CHATS[11]["prompt"])
    expected = "system: Add.\nuser: 2 + 3\nassistant: 5\nuser: And 1 more?\nassistant: "
    assert tokenizer.decode(prompt_ids(one, tokenizer)) == expected


def test_chats_need_the_tokenizer_of_a_model(tmp_path):
    path = write(tmp_path / "chats.jsonl", CHATS)
    with pytest.raises(ValueError, match=r"chats\.jsonl: a prompt is a chat: expected a pretrained model, whose tok"):
        load(path)


def test_a_model_and_the_task_do_not_both_bring_a_tokenizer(file):
    task = JsonlTask(file, tokenizer="own.model", data_dir=file.parent)
    with pytest.raises(ValueError, match=r"task\.tokenizer = 'own\.model': expected None, since the pretrained model"):
        task.load(tokenizer=chat_tokenizer())


def test_no_tokenizer_is_trained_for_a_model_that_has_one(file, monkeypatch):
    tokenizer = chat_tokenizer()
    monkeypatch.setattr(Tokenizer, "train", None)
    assert JsonlTask(file, data_dir=file.parent).load(tokenizer=tokenizer).tokenizer is tokenizer


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], r"line 2: prompt has messages with the roles \[\]: expected a user's message"),
        (["hi"], r"line 2: prompt\[0\] = 'hi': expected a message, \{\"role\""),
        ([{"role": "user"}], r"line 2: prompt\[0\] = \{'role': 'user'\}: expected a message"),
        ([{"role": "user", "content": 3}], r"line 2: prompt\[0\]\.content = 3: expected a string"),
        ([{"role": None, "content": "a"}], r"line 2: prompt\[0\]\.role = None: expected a string"),
        (chat(("user", "a"), ("user", "\ud800")), r"line 2: prompt\[1\]\.content = .*lone surrogate at 0"),
        (chat(("system", "a")), r"line 2: prompt has messages with the roles \['system'\]: expected a user's message"),
        (chat(("user", "a"), ("assistant", "b")), r"\['user', 'assistant'\]: .* a last message that the assistant ans"),
        (chat(("user", "")), r"line 2: prompt = '': expected at least one character"),
        ({"role": "user", "content": "a"}, r"line 2: prompt = \{.*\}: expected a string"),
    ],
    ids=str,
)
def test_a_malformed_chat_is_refused_by_its_line(tmp_path, prompt, message):
    with pytest.raises(ValueError, match=message):
        read_jsonl(write(tmp_path / "bad.jsonl", [ROWS[0], {"prompt": prompt, "answer": "b"}]))
