import dataclasses
import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from rljax.tasks import Problem, Task, TaskData, Tokenizer
from rljax.tasks.batching import left_padded
from rljax.tasks.task import full_reward
from rljax.text.sentencepiece import BOS, PAD
from rljax.training.collect import draw
from rljax.training.components import make_components
from rljax.training.errors import RunError
from rljax.training.evaluation.command import table
from rljax.training.evaluation.evaluator import Evaluator
from rljax.training.held_out import encode_held_out
from tests.models.bigram import BigramConfig
from tests.training.in_process import on_devices
from tests.training.tiny import config as tiny

pytestmark = pytest.mark.standard_promotion

SYMBOLS = ["a", "b", "c", "d", "."]
NEXT = {"a": "b", "b": ".", "c": "d", "d": "d"}  # the policy answers a with "b.", and c with an endless "dd…"


@dataclasses.dataclass(frozen=True)
class LettersTask(Task):
    """Write the letter that follows a letter; the reward of a correct answer is 0.5, which counts as solved."""

    def load(self) -> TaskData:
        tokenizer = Tokenizer.train(["abcd."], symbols=SYMBOLS, vocab_size=280)
        return TaskData(
            tokenizer=tokenizer,
            demonstrations=[],
            prompts=[Problem("a", "b")],
            held_out={"short": [Problem("a", "b")] * 3 + [Problem("a", "c")], "endless": [Problem("c", "d")] * 4},
            reward=lambda prompt, text, answer: 0.5 * (text == answer),
            solved=lambda reward: reward >= 0.5,
            checks={"one letter": lambda prompt, text: len(text) == 1},
            stop_ids=tuple(tokenizer.encode(".")),
        )


def evaluator_of(**change):
    evaluation = dataclasses.replace(tiny.evaluation, watch=(), problems=4, samples=2, batch=8)
    likelihood = dataclasses.replace(tiny.likelihood, steps=0)
    config = dataclasses.replace(tiny, task=LettersTask(), model=BigramConfig(), evaluation=evaluation,
                                 likelihood=likelihood)  # fmt: skip
    with on_devices(1):
        parts = make_components(config)
    vocabulary = parts.data.tokenizer.vocab_size
    table = np.zeros((vocabulary, vocabulary), np.float32)
    for letter, following in NEXT.items():
        (i,), (j,) = map(parts.data.tokenizer.encode, (letter, following))
        table[j, i] = 30.0
    params = {"embedding": jnp.eye(vocabulary), "unembedding": jnp.asarray(table)}
    data = dataclasses.replace(parts.data, **change)
    problems = itertools.chain(*data.held_out.values())
    parts = parts._replace(data=data, held_out=encode_held_out(problems, data.tokenizer, config.rollout))
    return Evaluator(config, parts), params


def test_solved_checks_and_stop_tokens_are_the_tasks():
    (evaluator, params), key = evaluator_of(), jax.random.key(0)
    found = evaluator.evaluate(params, key)
    assert {level: figures["pass@1"][0] for level, figures in found.items()} == {"short": 0.75, "endless": 0.0}
    assert {level: figures["greedy"][0] for level, figures in found.items()} == {"short": 0.75, "endless": 0.0}
    assert {level: figures["one letter"][0] for level, figures in found.items()} == {"short": 1.0, "endless": 0.0}
    assert evaluator.watch(params, key).accuracy == {"short": 0.75, "endless": 0.0}


def test_padding_and_bos_are_never_sampled():
    evaluator, params = evaluator_of()
    (a,) = evaluator.data.tokenizer.encode("a")
    found = {**params, "unembedding": params["unembedding"].at[jnp.array([PAD, BOS]), a].set(60.0)}
    assert evaluator.watch(found, jax.random.key(0)).accuracy == {"short": 0.75, "endless": 0.0}


def test_prompts_that_are_padded_on_the_right_are_refused():
    evaluator, params = evaluator_of()
    problems = [Problem("a", "b")] * 8
    rows = left_padded([evaluator.data.tokenizer.encode(problem.prompt) for problem in problems], 2)
    rows = {name: array[:, ::-1] for name, array in rows.items()}
    with pytest.raises(ValueError, match=r"segment_ids\[0\] = \[1, 0\]: expected padding \(0\) only on the left"):
        draw(evaluator.parts, tiny.rollout.sampling, params, rows, problems, jax.random.key(0))


def test_the_mean_reward_is_reported_beside_what_is_solved():
    key = jax.random.key(0)
    for solved, share in ((full_reward, 0.0), (lambda reward: reward > 0.9, 1.0)):
        evaluator, params = evaluator_of(reward=lambda *_: 0.95, solved=solved, checks={})
        found = evaluator.evaluate(params, key)
        for figures in found.values():
            value, low, high = figures["reward"]
            assert value == pytest.approx(0.95)
            assert low < value < high
            assert [figures[name][0] for name in ("pass@1", "pass@2", "greedy")] == [share] * 3
        accuracy, reward = evaluator.watch(params, key)
        assert list(accuracy.values()) == [share] * 2
        assert reward == pytest.approx({"short": 0.95, "endless": 0.95})
        shown = io.StringIO()
        Console(file=shown, width=160).print(table("run", found))
        assert "0.950 [0.4" in shown.getvalue()
        assert f" {100 * share:.1f} [" in shown.getvalue()


def test_a_cut_completion_is_scored():
    evaluator, params = evaluator_of(reward=lambda prompt, text, answer, *, length: -length, checks={})
    found = evaluator.evaluate(params, jax.random.key(0))
    budget = tiny.rollout.sampling.max_new_tokens
    assert found["endless"]["reward"] == [-budget] * 3
    assert found["short"]["reward"][0] == -2  # a letter and a full stop in all 4 problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solved": lambda reward: None}, r"solved\(0\.5\) = None: expected True or False"),
        ({"checks": {"short": lambda prompt, text: len(text)}}, r"short\('a', 'b'\) = 1: expected True or False"),
    ],
)
def test_what_is_not_true_or_false_is_named(change, message):
    evaluator, params = evaluator_of(**change)
    with pytest.raises(RunError, match=message):
        evaluator.evaluate(params, jax.random.key(0))


def test_a_check_has_a_name_of_its_own():
    for name in ("reward", "pass@2", "samples"):
        with pytest.raises(ValueError, match=rf"checks = \['{name}'\]: expected names other than"):
            evaluator_of(checks={name: lambda prompt, text: True})


def test_a_level_without_problems_is_not_evaluated():
    evaluator, params = evaluator_of(held_out={"empty": [], "short": [Problem("a", "b")]})
    assert evaluator.watch(params, jax.random.key(0)).accuracy == {"short": 1.0}
    assert list(evaluator.evaluate(params, jax.random.key(0))) == ["short"]


def test_the_best_constant_strategy_is_reported_beside_the_greedy_accuracy():
    held_out = {"short": [Problem("a", "b", level="short")] * 3 + [Problem("a", "c", level="short")] * 2,
                "endless": [Problem("c", "d", level="endless")] * 4}  # fmt: skip
    baselines = {"always b": lambda problem: "b", "always d": lambda problem: "d"}
    evaluator, params = evaluator_of(baselines=baselines, held_out=held_out)  # evaluates 4 problems per level
    found = evaluator.evaluate(params, jax.random.key(0))
    assert {level: figures["best constant"][0] for level, figures in found.items()} == {"short": 0.75, "endless": 1.0}
    assert {level: figures["strategy"] for level, figures in found.items()} == {
        "short": "always b",
        "endless": "always d",
    }
    names = list(found["short"])
    assert names.index("best constant") == names.index("greedy") + 1
    shown = io.StringIO()
    Console(file=shown, width=200).print(table("run", found))
    assert "Best constant strategies: always b (short); always d (endless)." in shown.getvalue()
    evaluator, params = evaluator_of()
    assert not {"best constant", "strategy"} & evaluator.evaluate(params, jax.random.key(0))["short"].keys()
