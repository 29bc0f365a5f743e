"""The evaluator counts what the task says is solved, and ends completions where the task says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.tasks import Problem, Task, TaskData, Tokenizer
from rljax.training.components import make_components
from rljax.training.evaluation.evaluator import Evaluator
from tests.models.bigram import BigramConfig
from tests.training.in_process import on_devices
from tests.training.tiny import config as tiny

pytestmark = pytest.mark.standard_promotion

SYMBOLS = ["a", "b", "c", "d", "."]
NEXT = {"a": "b", "b": ".", "c": "d", "d": "d"}  # a is answered by "b", c by "d" without end


@dataclasses.dataclass(frozen=True)
class LettersTask(Task):
    """The letter after a letter. A right answer earns 0.5, which is what this task calls solved."""

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


def test_solved_checks_and_stop_tokens_are_the_tasks():
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
    evaluator, key = Evaluator(config, parts), jax.random.key(0)
    found = evaluator.evaluate(params, key)
    assert {level: figures["pass@1"][0] for level, figures in found.items()} == {"short": 0.75, "endless": 0.0}
    assert {level: figures["greedy"][0] for level, figures in found.items()} == {"short": 0.75, "endless": 0.0}
    assert {level: figures["one letter"][0] for level, figures in found.items()} == {"short": 1.0, "endless": 0.0}
    assert evaluator.watch(params, key) == {"short": 0.75, "endless": 0.0}
