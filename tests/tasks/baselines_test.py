import dataclasses
import functools

import pytest

from rljax.tasks import Problem, TaskData, Tokenizer, exact_match
from rljax.tasks.baselines import FUNCTIONS, best_baseline, constants

TOKENIZER = Tokenizer.train(["ab"], vocab_size=270)
COUNTDOWN = "Calculate 23 using these numbers: 5, 18.\nUse each number once.\n1. Give an expression."
REVERSAL = "Solve this problem.\n\nReverse this list of words: now, and, then\n"


@pytest.mark.parametrize(
    ("name", "prompt", "expected"),
    [
        ("echo", REVERSAL, "now, and, then"),
        ("echo", "Decrypt this text: MAHLX YKHF. Give the text alone.", "MAHLX YKHF"),
        ("last line", REVERSAL, "Reverse this list of words: now, and, then"),
        ("first word", REVERSAL, "now"),
        ("last word", REVERSAL, "then"),
        ("last word", "Which of these words is longer: now, then?", "then"),
        ("number of words", REVERSAL, "3"),
        ("number of numbers", COUNTDOWN, "2"),
        ("first number", COUNTDOWN, "5"),
        ("last number", COUNTDOWN, "18"),
        ("largest number", COUNTDOWN, "18"),
        ("smallest number", COUNTDOWN, "5"),
        ("sum", COUNTDOWN, "23"),
        ("difference", COUNTDOWN, "-13"),
        ("product", COUNTDOWN, "90"),
        ("a + b", COUNTDOWN, "5 + 18"),
        ("a - b", COUNTDOWN, "5 - 18"),
        ("b - a", COUNTDOWN, "18 - 5"),
        ("a * b", COUNTDOWN, "5 * 18"),
        ("sum", "State the answer to 4 - 1 - 7 =", "12"),
        ("sum", REVERSAL, ""),
        ("last number", "5, -2, -6, -8, ?", "-8"),
        ("product", "What is -3 times 7?", "-21"),
        ("a + b", "4-1 =", "4 + 1"),
    ],
)
def test_worked_by_hand(name, prompt, expected):
    assert FUNCTIONS[name](Problem(prompt, "")) == expected


def test_every_function_answers_every_text():
    for prompt in ("", " ", "\n", "a", "1", ": ", "x: ", ", ,", "é 1,2"):
        assert all(isinstance(function(Problem(prompt, "")), str) for function in FUNCTIONS.values())


def sums(count, answers=None, level="sums"):
    pairs = [(a, b) for a in range(10) for b in range(10)][:count]
    return [Problem(f"Numbers: {a}, {b}", answers or str(a + b), level=level) for a, b in pairs]


def data(held_out, prompts, **more):
    baselines = {**FUNCTIONS, **constants(prompts)}
    return TaskData(TOKENIZER, [], prompts, held_out, exact_match, baselines=baselines, **more)


def test_the_strategy_that_solves_a_task_is_found():
    found = data({"sums": sums(100)}, sums(50))
    assert best_baseline(found, "sums") == ("sum", 1.0)
    for name, accuracy in (("echo", 0.0), ("product", 0.02), ("always '9'", 0.1)):  # 0 · 0 and 2 · 2
        one = dataclasses.replace(found, baselines={name: found.baselines[name]})
        assert best_baseline(one, "sums") == (name, accuracy)


def test_it_is_chosen_on_training_problems_and_measured_on_held_out_ones():
    found = data({"sums": sums(100)}, sums(50, "7"))
    assert best_baseline(found, "sums") == ("always '7'", 0.08)
    assert best_baseline(dataclasses.replace(found, prompts=[]), "sums") == ("sum", 1.0)


def test_a_mixed_level_has_a_strategy_per_kind_of_problem():
    mixed = [*sums(20), *sums(20, "yes", "questions")]
    found = data({"all": mixed}, mixed)
    assert best_baseline(found, "all") == ("sums: sum, questions: always 'yes'", 1.0)


def test_the_reward_gets_the_problems_info_and_the_task_says_what_is_solved():
    def reward(prompt, completion, answer, *, info, length):
        return 0.5 * (completion == info["entry"] and length == len(TOKENIZER.encode(completion)) + 1)

    problems = [Problem("Numbers: 3, 4", "", info={"entry": "12"})]
    found = dataclasses.replace(data({"x": problems}, []), reward=reward, solved=lambda reward: reward == 0.5)
    assert best_baseline(found, "x") == ("product", 1.0)


def test_a_task_without_baselines_has_no_best_one():
    assert best_baseline(dataclasses.replace(data({"sums": sums(4)}, []), baselines={}), "sums") is None


def test_keywords_that_a_reward_has_bound_stay_bound():
    def doubled(prompt, completion, answer, *, length, scale=1.0):
        return scale * (completion == answer) * (length == 9)

    reward = functools.partial(doubled, length=9)  # not the length of the answer, which is 2 tokens
    problems = [Problem("1 + 1 =", "2")]
    data = TaskData(TOKENIZER, [], problems, {"sums": problems}, reward, baselines={"sum": FUNCTIONS["sum"]})
    assert best_baseline(data, "sums") == ("sum", 1.0)
