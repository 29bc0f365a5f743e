import itertools

import pytest

from rljax.tasks.strings.functions import FUNCTIONS, LETTERS, LONGEST, apply, operation
from rljax.tasks.strings.problems import LENGTHS, is_test_string

SHORT = ["".join(x) for n in LENGTHS for x in itertools.islice(itertools.product(LETTERS, repeat=n), 0, None, 5)]
TEST_STRINGS = [x for x in SHORT if is_test_string(x)]
ANY_LENGTH = [
    "".join(x)
    for n in range(1, LONGEST + 1)
    for x in itertools.islice(itertools.product(LETTERS, repeat=n), 0, None, 997)
]

WORKED = {  # computed by hand for "szut" (4 letters) and "vxxsy" (5 letters)
    "f0": ("zuts", "xxsyv"),
    "f1": ("vuxw", "yssvt"),
    "f2": ("szutszu", "vxxsyvx"),
    "f3": ("zut", "xxsy"),
    "f4": ("zstu", "xvsxy"),
    "f5": ("zsxy", "wuuzt"),
    "f6": ("szutw", "vxxsyw"),
    "f7": ("stuz", "svxxy"),
    "f8": ("su", "vxy"),
    "f9": ("tuzs", "ysxxv"),
    "f10": ("ssszut", "vvvxxsy"),
    "f11": ("tzut", "wxxsy"),
    "f12": ("tsvu", "wyytz"),
    "f13": ("szuttuz", "vxxsyys"),
    "f14": ("syzyuyt", "vyxyxys"),
    "f15": ("utsz", "syvxx"),
    "f16": ("tszut", "tvxxsy"),
    "f17": ("szuttt", "vxxsyyy"),
    "f18": ("suzt", "vxyxs"),
    "f19": ("sszzuut", "vvxxxxs"),
    "f20": ("zuts", "yxxvs"),
    "f21": ("sxux", "vxxxy"),
    "f22": ("yxsz", "tvvyw"),
    "f23": ("stzuuzt", "vyxsxxs"),
    "f24": ("szu", "vxxs"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_worked_by_hand(name):
    assert (apply([name], "szut"), apply([name], "vxxsy")) == WORKED[name]


def test_there_are_25_functions_of_at_least_12_operations():
    assert len(FUNCTIONS) == 25
    assert len({operation(name) for name in FUNCTIONS}) >= 12


@pytest.mark.parametrize("name", FUNCTIONS)
def test_total_and_cut(name):
    for x in ANY_LENGTH:
        y = apply([name], x)
        assert 1 <= len(y) <= LONGEST
        assert set(y) <= set(LETTERS)


def test_pairwise_different_on_the_test_strings():
    outputs = {"identity": TEST_STRINGS} | {name: [apply([name], x) for x in TEST_STRINGS] for name in FUNCTIONS}
    for a, b in itertools.combinations(outputs, 2):
        same = sum(x == y for x, y in zip(outputs[a], outputs[b], strict=True))
        assert same < 0.2 * len(TEST_STRINGS), (a, b)


def test_composition_applies_from_right_to_left_and_cuts_each_output():
    assert apply(["f3", "f9"], "stuvx") == "vuts"
    assert apply(["f9", "f3"], "stuvx") == "xvut"
    assert apply(["f9", "f2"], "stuvx") == "tsxvuts"  # doubled, truncated to stuvxst, then reversed
    assert apply([], "stu") == "stu"


@pytest.mark.parametrize(("names", "text"), [(["f1"], ""), (["f1"], "stuvwxyz"), (["f1"], "abc"), (["f25"], "stu")])
def test_bad_input_is_named(names, text):
    with pytest.raises(ValueError, match="expected"):
        apply(names, text)
