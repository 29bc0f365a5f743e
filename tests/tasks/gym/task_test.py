import builtins
import collections
import dataclasses
import json

import pytest
import tyro

from rljax.tasks import ReasoningGymTask
from rljax.tasks.batching import pack, prompt_ids
from rljax.tasks.gym import dataset, transcript
from rljax.tasks.gym.generator import decode_entry, distinct, encode_entry, generate
from rljax.tasks.gym.scorer import EntryScore
from rljax.tasks.gym.task import shares
from rljax.training.description import describe
from tests.tasks.chats import chat_tokenizer

TOKENIZER = chat_tokenizer()
TASK = ReasoningGymTask(
    {"gcd": 2, "isomorphic_strings": 1},
    settings={"gcd": {"max_value": 30}, "word_sorting": {"max_words": 3}},
    untrained=("word_sorting",),
    prompts=40, problems=8, demonstrations=7, shots=2, system="Be brief.", instruction="Answer alone.",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gym")


@pytest.fixture(scope="module")
def data(folder):
    return dataclasses.replace(TASK, data_dir=folder).load(tokenizer=TOKENIZER)


def questions(problems):
    return [problem.prompt for problem in problems]


def test_shares_by_largest_remainders():
    assert shares(7, {"a": 1, "b": 1, "c": 1}) == {"a": 3, "b": 2, "c": 2}
    assert shares(0, {"a": 1}) == {"a": 0}
    assert shares(10, {"a": 0.35, "b": 0.65}) == {"a": 4, "b": 6}


def test_counts_by_category_and_weight(data):
    assert {level: len(problems) for level, problems in data.held_out.items()} == {
        "all": 8, "gcd": 8, "isomorphic_strings": 8, "word_sorting": 8,
    }  # fmt: skip
    assert data.headline == "all"
    assert collections.Counter(p.level for p in data.prompts) == {"gcd": 27, "isomorphic_strings": 13}
    assert collections.Counter(p.level for p in data.demonstrations) == {"gcd": 5, "isomorphic_strings": 2}
    assert collections.Counter(p.level for p in data.held_out["all"]) == {"gcd": 4, "isomorphic_strings": 4}
    assert collections.Counter(p.level for p in data.held_out["all"][:2]) == {"gcd": 1, "isomorphic_strings": 1}
    for level in ("gcd", "isomorphic_strings", "word_sorting"):
        assert {p.level for p in data.held_out[level]} == {level}
        assert {p.info["metadata"]["source_dataset"] for p in data.held_out[level]} == {level}


def test_no_question_is_used_twice(data):
    levels = [name for name in data.held_out if name != "all"]
    used = [*data.prompts, *data.demonstrations, *(p for level in levels for p in data.held_out[level])]
    shots = {turn["content"].removesuffix("\nAnswer alone.") for p in used for turn in p.messages[1:-1:2]}
    every = [*questions(used), *shots]
    assert len(shots) == 2 * 3
    assert len(set(every)) == len(every) == 40 + 7 + 3 * 8 + 6


def test_questions_are_shuffled(data):
    """The common questions are drawn first, so the order of generation would bias a split."""
    for level in ("gcd", "isomorphic_strings"):
        drawn = [p.info["metadata"]["source_index"] for p in data.prompts if p.level == level]
        assert drawn != sorted(drawn)
        held_out = [p.info["metadata"]["source_index"] for p in data.held_out[level]]
        assert min(held_out) < max(drawn)
        assert min(drawn) < max(held_out)
    assert len({p.level for p in data.prompts[:12]}) == 2


def test_a_prompt_is_a_chat_with_examples(data):
    problem = next(p for p in data.prompts if p.level == "gcd")
    system, *turns = problem.messages
    assert system == {"role": "system", "content": "Be brief."}
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2 + ["user"]
    assert turns[-1]["content"] == f"{problem.prompt}\nAnswer alone."
    assert problem.prompt == problem.meta["question"]
    assert problem.answer == problem.meta["answer"]
    assert not problem.solution
    text = TOKENIZER.decode(prompt_ids(problem, TOKENIZER))
    assert text.startswith("system: Be brief.\nuser: Find the Greatest")
    assert text.endswith("\nAnswer alone.\nassistant: ")


def test_demonstrations_are_solved(data):
    assert all(p.solution == p.answer for p in data.demonstrations)
    assert all(score(data, p, p.solution) == 1 for p in data.demonstrations)
    assert pack(data.demonstrations, TOKENIZER, 1500)["mask"].any()


def score(data, problem, text):
    return data.reward(problem.prompt, text, problem.answer, info=problem.info)


def test_the_reward_is_the_categories_own_score(data):
    for level, problems in data.held_out.items():
        for problem in problems:
            assert score(data, problem, f" {problem.answer}\n") == 1, level
            assert score(data, problem, "no answer") < 1
    words = data.held_out["word_sorting"][0]
    assert 0 < score(data, words, ", ".join(reversed(words.answer.split(", ")))) < 1  # a partial score is kept


def entry(name, **more):
    return {"question": "", "answer": "", "metadata": {"source_dataset": name, **more}}


@pytest.mark.parametrize("text", ["x", "1/0", "(" * 500, "[[", "\x00", '{"a": 1}', "9" * 5000, "print('printed')"])
@pytest.mark.parametrize("info", [entry("prime_factorization", number=6), entry("game_of_life"), entry("countdown")])
def test_a_scorer_that_raises_gives_nothing(text, info, capsys):
    assert 0 <= EntryScore()("", text, "", info=info) < 1
    assert capsys.readouterr().out == ""


def test_negative_scores_are_kept_and_infinite_ones_are_0(monkeypatch):
    from reasoning_gym.arithmetic.gcd import GCDDataset

    for given, expected in ((-0.5, -0.5), (float("nan"), 0.0), (float("-inf"), 0.0)):
        monkeypatch.setattr(GCDDataset, "score_answer", lambda self, answer, entry, given=given: given)
        assert EntryScore()("", "1", "1", info=entry("gcd")) == expected


def test_the_entry_is_json_data_and_keeps_its_tuples(data):
    for problem in data.prompts:
        json.dumps(problem.info)
    assert data.held_out["gcd"][0].info["metadata"]["difficulty"]["value"] == (1, 30)


def test_an_entry_survives_storage():
    value = {"a": [(1, "x"), [(2.5, None)]], "b": {1: (True,), (0, 1): {}}, "c": "ü\x00"}
    assert decode_entry(json.loads(json.dumps(encode_entry(value)))) == value


def test_the_data_do_not_depend_on_the_process(data, monkeypatch):
    """isomorphic_strings chooses among the elements of a set of strings, whose order depends on the hash seed."""
    problem = next(p for p in data.prompts if p.level == "isomorphic_strings")
    request = next(r for r in TASK._requests() if r.name == "isomorphic_strings")
    monkeypatch.setenv("PYTHONHASHSEED", "3")
    (entries,) = decode_entry(generate([request]))
    assert entries[problem.info["metadata"]["source_index"]]["question"].strip() == problem.prompt
    assert problem.info in entries


def generated_here(requests):
    return [encode_entry(distinct(request)) for request in requests]


def test_another_seed_and_a_single_category(folder, data, monkeypatch):
    monkeypatch.setattr(dataset, "generate", generated_here)
    single = ReasoningGymTask({"gcd": 1}, settings={"gcd": {"max_value": 30}}, prompts=60, problems=8, data_dir=folder)
    first, other = (dataclasses.replace(single, seed=seed).load(tokenizer=TOKENIZER) for seed in (0, 1))
    assert list(first.held_out) == ["gcd"]
    assert len(set(questions(first.prompts)) & set(questions(other.prompts))) < 20  # of 900 possible questions
    monkeypatch.setattr(dataset, "generate", None)
    again = single.load(tokenizer=TOKENIZER)
    assert (again.prompts, again.held_out) == (first.prompts, first.held_out)


def test_too_few_distinct_questions(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "generate", generated_here)
    task = ReasoningGymTask({"gcd": 1}, settings={"gcd": {"max_value": 4}}, prompts=20, problems=4, data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"gcd has too few distinct questions: expected 24 .*, found 16; ask"):
        task.load(tokenizer=TOKENIZER)


@pytest.mark.parametrize("use", ["shots", "demonstrations"])
def test_examples_need_an_answer(tmp_path, monkeypatch, use):
    monkeypatch.setattr(dataset, "generate", generated_here)
    task = ReasoningGymTask({"graph_color": 1}, prompts=2, problems=2, data_dir=tmp_path, **{use: 1})
    with pytest.raises(ValueError, match=rf"task\.{use} = 1: expected 0, since reasoning-gym does not answer"):
        task.load(tokenizer=TOKENIZER)


def test_a_model_without_a_tokenizer_gets_one_and_the_chat_as_text(folder):
    task = dataclasses.replace(TASK, as_text=transcript, data_dir=folder)
    found = task.load()
    problem = found.prompts[0]
    assert not problem.messages
    assert problem.prompt.startswith("Be brief.\n")
    assert problem.prompt.endswith("\nAnswer alone.\n")
    assert found.tokenizer.decode(found.tokenizer.encode(problem.prompt)) == problem.prompt
    assert found.baselines["last line"](problem) == problem.info["question"].strip().splitlines()[-1]
    with pytest.raises(ValueError, match=r"task\.as_text = None: expected a function such as rljax\.tasks\.gym\.tran"):
        dataclasses.replace(TASK, data_dir=folder).load()


def test_the_settings_are_a_value():
    assert hash(TASK) == hash(dataclasses.replace(TASK))
    assert dataclasses.replace(TASK, seed=0) == TASK != dataclasses.replace(TASK, seed=1)
    described = json.loads(json.dumps(describe(TASK)))
    assert described["categories"] == [["gcd", 2], ["isomorphic_strings", 1]]
    assert described["settings"][0] == ["gcd", [["max_value", 30]]]


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--prompts", "50", "--instruction", ""], {"prompts": 50, "instruction": ""}),
        (["--untrained", "lcm", "word_sorting"], {"untrained": ("lcm", "word_sorting")}),
        (["--categories", "gcd", "3", "lcm", "1"], {"categories": {"gcd": 3, "lcm": 1}}),
    ],
)
def test_fields_on_the_command_line(arguments, changed):
    assert tyro.cli(ReasoningGymTask, default=TASK, args=arguments) == dataclasses.replace(TASK, **changed)


def test_constant_strategies_are_measured_beside_the_model(data):
    assert {"sum", "echo", "always 'True'"} <= data.baselines.keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"categories": {"gdc": 1}}, r"task\.categories = 'gdc': expected a category of reasoning-gym, such as 'gcd'"),
        ({"untrained": ("countdwn",)}, r"task\.untrained = 'countdwn': .* such as 'countdown'"),
        ({"settings": {"gcd": {"max_valu": 3}}}, r"task\.settings\['gcd'\] = 'max_valu': expected settings among \['"),
        ({"settings": {"gcd": {"seed": 3}}}, r"task\.settings\['gcd'\] = 'seed': expected settings among"),
        ({"settings": {"gcd": {"max_value": 0}}}, r"task\.settings\['gcd'\] = \{'max_value': 0\}: expected settings"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_bad_categories_are_named(tmp_path, fields, message):
    task = ReasoningGymTask(**{"categories": {"gcd": 1}, "prompts": 20, "problems": 4, "data_dir": tmp_path, **fields})
    with pytest.raises(ValueError, match=message):
        task.load(tokenizer=TOKENIZER)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"categories": {}}, r"task\.categories = \{\}: expected at least one category"),
        ({"categories": {"gcd": 0}}, r"task\.categories\['gcd'\] = 0: expected a positive weight"),
        ({"categories": {"all": 1}}, r"task\.categories = \{'all': 1\}: expected no category 'all'"),
        ({"untrained": ("gcd",)}, r"task\.untrained = \('gcd',\): expected no category of \['gcd'\]"),
        ({"untrained": ("lcm", "lcm")}, r"task\.untrained = .*: expected different names"),
        ({"settings": {"lcm": {}}}, r"task\.settings\['lcm'\] = \{\}: expected one of \['gcd'\]"),
        ({"prompts": 0}, r"task\.prompts = 0: expected 1 or more"),
        ({"problems": 0}, r"task\.problems = 0: expected 1 or more"),
        ({"shots": -1}, r"task\.shots = -1: expected 0 or more"),
        ({"demonstrations": -1}, r"task\.demonstrations = -1: expected 0 or more"),
        ({"seed": -1}, r"task\.seed = -1: expected 0 or more"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_fields_out_of_range_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        ReasoningGymTask(**{"categories": {"gcd": 1}, **fields})


def test_the_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *more, **named):
        if name.startswith("reasoning_gym"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs the package reasoning-gym .*: pip install 'rljax-llm\[gym\]'"):
        TASK.load(tokenizer=TOKENIZER)
