import collections
import hashlib
import itertools

import pytest

from rljax.tasks.strings import problems as sp
from rljax.tasks.strings.functions import FUNCTIONS, apply

DEMONSTRATIONS = list(sp.demonstrations(0, 12000))
PROMPTS = list(sp.prompts(0, 4000))


def names_and_input(problem):
    if problem.prompt.endswith(" "):  # a single step, preceded by any name
        given, name = problem.prompt.split(";")
        return (name.strip(),), given.split()[1]
    *names, text = problem.prompt.rstrip(";").split()
    return tuple(names), text


def test_the_sets_of_pairs_are_disjoint_and_of_the_stated_sizes():
    assert [len(pairs) for pairs in sp.PAIRS] == [60, 204, 136, 225]
    for a, b in itertools.combinations(sp.PAIRS, 2):
        assert not set(a) & set(b)
    assert {pair for pairs in sp.PAIRS for pair in pairs} == set(itertools.product(FUNCTIONS, repeat=2))
    assert len(sp.ISOLATED) == 5
    assert all(set(pair) & set(sp.ISOLATED) for pair in sp.PAIRS.held_out_functions)


def test_each_function_is_demonstrated_three_times_on_either_side():
    for side in zip(*sp.PAIRS.demonstrated, strict=True):
        assert collections.Counter(side) == dict.fromkeys(sp.COMPOSED, 3)


def test_training_composes_only_its_own_pairs():
    demonstrated = {names for names, _ in map(names_and_input, DEMONSTRATIONS) if len(names) > 1}
    trained = {names for names, _ in map(names_and_input, PROMPTS) if len(names) > 1}
    assert demonstrated == set(sp.PAIRS.demonstrated)
    assert trained == set(sp.PAIRS.trained)


@pytest.mark.parametrize(("level", "pairs"), list(zip(sp.LEVELS[1:4], sp.PAIRS[1:], strict=True)))
def test_held_out_levels_ask_for_their_pairs(level, pairs):
    assert {names_and_input(p)[0] for p in sp.held_out(level, 0, 500)} <= set(pairs)


@pytest.mark.parametrize(("level", "depth"), list(zip(sp.LEVELS, (1, 2, 2, 2, 3, 4), strict=True)))
def test_depth_of_the_levels(level, depth):
    for problem in sp.held_out(level, 0, 200):
        names, text = names_and_input(problem)
        assert (len(names), problem.level, len(text) in sp.LENGTHS) == (depth, level, True)
        assert depth < 3 or not set(names) & set(sp.ISOLATED)


def test_no_input_of_an_evaluation_is_an_input_in_training():
    trained = {names_and_input(p)[1] for p in (*DEMONSTRATIONS, *PROMPTS)}
    tested = {names_and_input(p)[1] for level in sp.LEVELS for p in sp.held_out(level, 0, 500)}
    assert not trained & tested
    assert len(tested) > 500


def test_shares_of_the_training_problems():
    level_2 = sum(p.level == "level 2" for p in DEMONSTRATIONS) / len(DEMONSTRATIONS)
    assert abs(level_2 - sp.DEMONSTRATED_PAIRS) < 0.01
    level_1 = [p for p in DEMONSTRATIONS if p.level == "level 1"]
    assert abs(sum(p.prompt.endswith(" ") for p in level_1) / len(level_1) - sp.SINGLE_STEPS) < 0.01
    unusual = [len(names_and_input(p)[1]) not in sp.LENGTHS for p in DEMONSTRATIONS if p.level == "level 1"]
    assert abs(sum(unusual) / len(unusual) - 0.3 * 4 / 7) < 0.03
    assert abs(sum(p.level == "level 1" for p in PROMPTS) / len(PROMPTS) - sp.LEVEL_1_PROMPTS) < 0.03
    assert {names_and_input(p)[0][0] for p in DEMONSTRATIONS if p.level == "level 1"} == set(FUNCTIONS)


def test_answers_and_solutions():
    for problem in (*DEMONSTRATIONS[:500], *sp.held_out("level 4", 0, 100)):
        names, text = names_and_input(problem)
        whole = problem.prompt.split(";")[1] + problem.solution  # the prompt of a single step contains the name
        steps = [step.split() for step in whole.split(";")]
        assert [name for name, _ in steps] == list(names[::-1])
        for name, output in steps:
            assert output == (text := apply([name], text))
        assert problem.answer == text == apply(names, names_and_input(problem)[1])


def test_another_seed_gives_other_problems_of_the_same_pairs():
    other = list(sp.prompts(1, 4000))
    assert other != PROMPTS
    assert {names_and_input(p)[0] for p in other if p.level == sp.LEVELS[1]} == set(sp.PAIRS.trained)


def test_data_of_this_version():
    """Equal on every machine and Python version. If you change the data, change StringFunctions.VERSION too."""
    problems = [*DEMONSTRATIONS, *PROMPTS, *(p for level in sp.LEVELS for p in sp.held_out(level, 0, 200))]
    digest = hashlib.sha256("\n".join(map(repr, (sp.PAIRS, *problems))).encode()).hexdigest()
    assert digest[:16] == "86f1ea3eed959524"
