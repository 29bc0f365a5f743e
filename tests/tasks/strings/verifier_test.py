import pytest

from rljax.tasks import exact_match
from rljax.tasks.strings.verifier import last_output, read_steps, right_chain

PROMPT, ANSWER = "f6 f9 stuv;", "vutsw"


@pytest.mark.parametrize("completion", ["f9 vuts;f6 vutsw", "f6 stuvw;f9 vutsw", "f6 vutsw", "f0 s;f0 s;f12 vutsw"])
def test_the_last_output_is_the_outcome(completion):
    assert last_output(PROMPT, completion, ANSWER) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "", "vutsw", " vutsw", "f9 vuts;f6 vuts", "f6 vutsw;f9 vuts",
        "f9 vuts;f6 vutsw;", "f9 vuts;;f6 vutsw", ";f6 vutsw", "f9 ;f6 vutsw", "f9;f6 vutsw",
        "f6 vutsw ", " f6 vutsw", "f6  vutsw", "f6 vutsw\n", "f25 vutsw", "f06 vutsw", "f vutsw", "f6vutsw",
        "f9 vuts f6 vutsw", "f9 vats;f6 vutsw", "f6 vutsw\x00", "F6 vutsw", "f６ vutsw", "f6 VUTSW",
    ],
)  # fmt: skip
def test_wrong_or_malformed_earns_nothing(completion):
    assert last_output(PROMPT, completion, ANSWER) == 0.0


def test_a_cut_completion_earns_nothing():
    assert last_output(PROMPT, "f9 vuts;f6 vutsw", ANSWER, finished=True) == 1.0
    assert last_output(PROMPT, "f9 vuts;f6 vutsw", ANSWER, finished=False) == 0.0
    assert exact_match("6 x 7 =", "42", "42", finished=False) == 0.0


def test_right_chain_asks_for_the_functions_in_their_order_alone():
    assert right_chain(PROMPT, "f9 vuts;f6 vutsw")
    assert right_chain(PROMPT, "f9 s;f6 t")
    for wrong in (
        "f6 stuvw;f9 wvuts",
        "f9 vuts",
        "f6 vutsw",
        "f9 s;f6 t;f6 t",
        "f9 vuts;f6 vutsw;",
        "",
        "f9 vuts;f16 s",
    ):
        assert not right_chain(PROMPT, wrong)
    assert right_chain("f3 stu;", "f3 tu")
    assert right_chain("f1 f2 f3 f4 stu;", "f4 s;f3 s;f2 s;f1 s")


def test_read_steps():
    assert read_steps("f24 s;f2 zzyyxxw") == [("f24", "s"), ("f2", "zzyyxxw")]
    assert read_steps("f24 s;f2 a") is None


@pytest.mark.parametrize(("completion", "reward"), [("42", 1.0), (" 42\n", 1.0), ("42.", 0.0), ("", 0.0), ("4 2", 0.0)])
def test_exact_match(completion, reward):
    assert exact_match("6 x 7 =", completion, "42") == reward
