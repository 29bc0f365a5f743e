"""Problems that are too long are left out and counted, or refused; every held-out prompt is encoded once."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest

from rljax.models import initialize
from rljax.tasks import Problem, Task, TaskData, Tokenizer, exact_match
from rljax.tasks.batching import pack
from rljax.training.checkpoint.folder import read_json
from rljax.training.components import make_components
from rljax.training.evaluation.evaluator import Evaluator
from rljax.training.report.monitor import Monitor
from rljax.training.stages import LikelihoodStage, PolicyStage
from tests.models.bigram import BigramConfig
from tests.training.in_process import on_devices
from tests.training.tiny import config as tiny

pytestmark = pytest.mark.standard_promotion


class Counting(Tokenizer):
    """One token per letter; counts the calls of `encode` by text."""

    def __init__(self, model_proto):
        self.calls = Counter()
        super().__init__(model_proto)

    def encode(self, text):
        self.calls[text] += 1
        return super().encode(text)


TOKENIZER = Counting.train(["ab."], symbols=["a", "b", "."], vocab_size=270)


def problem(prompt: int, solution: int = 1, level: str = "") -> Problem:
    """A problem of `prompt` and `solution` tokens."""
    return Problem("a" * prompt, "b", "b" * solution, level)


@dataclasses.dataclass(frozen=True)
class LettersTask(Task):
    prompts: tuple[Problem, ...] = (problem(2, level="x"), problem(9, level="y"), problem(4, level="z"))
    demonstrations: tuple[Problem, ...] = (problem(2, 3), problem(2, 13), problem(2, 3))
    held_out: tuple[Problem, ...] = (problem(2), problem(3))

    def load(self):
        return TaskData(TOKENIZER, [*self.demonstrations], [*self.prompts], {"all": [*self.held_out]}, exact_match)


def config_of(task=LettersTask(), leave_out_long=True, **rollout):  # noqa: B008 (frozen)
    sampling = dataclasses.replace(tiny.rollout.sampling, max_new_tokens=10)
    settings = dataclasses.replace(tiny.rollout, prompt_length=4, sampling=sampling, leave_out_long=leave_out_long,
                                   prompts=2, minibatches=1, **rollout)  # fmt: skip
    likelihood = dataclasses.replace(tiny.likelihood, row_length=12)
    evaluation = dataclasses.replace(tiny.evaluation, watch=())
    return dataclasses.replace(tiny, task=task, model=BigramConfig(max_length=20), rollout=settings,
                               likelihood=likelihood, evaluation=evaluation)  # fmt: skip


def parts_of(**settings):
    with on_devices(1):
        return make_components(config_of(**settings))


def test_longer_prompts_are_left_out_and_counted():
    parts = parts_of()
    assert parts.left_out["prompts"] == (1, 3, "rollout.prompt_length = 4")
    assert parts.prompts["index"].tolist() == [0, 2]
    assert parts.prompts["task"].tolist() == [0, 2]  # the levels' numbers do not depend on what is left out
    assert parts.prompts["segment_ids"].sum(axis=1).tolist() == [2, 4]
    assert len(parts.data.prompts) == 3


@pytest.mark.parametrize(("held_out", "kept"), [
    ([(10, 1), (11, 1)], [0]),  # 11 prompt tokens + 10 new tokens > 20
    ([(2, 14), (2, 15)], [0]),  # 4 prompt columns + 15 tokens and 2 more > 20
    ([(5, 12), (6, 12), (7, 1)], [0, 1]),  # 7 + 14 > 20, since a level has one token budget
])  # fmt: skip
def test_held_out_problems_fit_together(held_out, kept):
    problems = tuple(problem(*sizes) for sizes in held_out)
    parts = parts_of(task=LettersTask(held_out=problems))
    assert parts.data.held_out == {"all": [problems[i] for i in kept]}
    assert parts.left_out["held-out problems of 'all'"] == (1, len(problems), "model.max_length = 20")
    rows, budget = parts.held_out.rows(parts.data.held_out["all"])
    assert rows["tokens"].shape[1] + budget <= 20


def test_long_demonstrations_are_left_out_and_counted():
    config, parts = config_of(), parts_of()
    assert LikelihoodStage(config, parts).left_out == {"demonstrations": (1, 3, "likelihood.row_length = 12")}
    rows = pack(parts.data.demonstrations, TOKENIZER, 12, leave_out_long=True)
    assert rows["segment_ids"].tolist() == [[1] * 6 + [2] * 6]


@pytest.mark.parametrize(("task", "message"), [
    (LettersTask(), r"rollout\.prompt_length = 4: expected at least the 9 tokens of the prompt 'aaaaaaaaa' .*_long$"),
    (LettersTask(prompts=(problem(2),), held_out=(problem(11), problem(2))),
     r"model\.max_length = 20: expected at least 11 \+ 10 tokens, for the held-out problems of 'all'"),
])  # fmt: skip
def test_long_problems_are_refused_on_demand(task, message):
    with pytest.raises(ValueError, match=message):
        parts_of(task=task, leave_out_long=False)


def test_long_demonstrations_are_refused_on_demand():
    config = config_of(leave_out_long=False)
    with pytest.raises(ValueError, match=r"row_length = 12: expected room for 'aa' with its solution, 16 tokens"):
        LikelihoodStage(config, parts_of())


@pytest.mark.parametrize(("task", "message"), [
    (LettersTask(prompts=(problem(9), problem(7))), r"= 4: .* 9 tokens .* \(the shortest .* has 7\); raise the limit$"),
    (LettersTask(held_out=(problem(11),)), r"max_length = 20: expected at least 11 \+ 10 tokens"),
])  # fmt: skip
def test_at_least_one_problem_must_be_left(task, message):
    with pytest.raises(ValueError, match=message):
        parts_of(task=task)
    with pytest.raises(ValueError, match=r"row_length = 5: .* 6 tokens \(the shortest demonstration has 6\)"):
        pack([problem(2, 3)], TOKENIZER, 5, leave_out_long=True)


def test_the_counts_are_printed_and_recorded(tmp_path, capsys):
    config, parts = dataclasses.replace(config_of(), run=tmp_path), parts_of()
    monitor = Monitor(config, None)
    for stage in (LikelihoodStage, PolicyStage):
        monitor.left_out(stage(config, parts).left_out)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "left out 1 of 3 demonstrations, which are longer than likelihood.row_length = 12 allows",
        "left out 1 of 3 prompts, which are longer than rollout.prompt_length = 4 allows",
    ]
    recorded = {
        kind: (found["count"], found["total"]) for kind, found in read_json(tmp_path / "left_out.json", {}).items()
    }
    assert recorded == {"demonstrations": (1, 3), "prompts": (1, 3), "held-out problems of 'all'": (0, 2)}
    with monitor:
        monitor.begin()
    assert read_json(tmp_path / "left_out.json", {}) == {}


def test_prompts_are_encoded_once():
    TOKENIZER.calls.clear()
    config, parts = config_of(), parts_of()
    evaluator = Evaluator(config, parts)
    params = parts.model.initialize(jax.random.key(0))
    for _ in range(2):
        evaluator.watch(params, jax.random.key(0))
    assert TOKENIZER.calls["aaa"] == TOKENIZER.calls["a" * 9] == 1


@dataclasses.dataclass(frozen=True)
class Padded(BigramConfig):
    """A bigram model with a tokenizer, whose table has 5 rows more than the tokenizer has tokens."""

    def tokenizer(self):
        return TOKENIZER

    def build(self, *, vocab_size, value_head, rules):
        return super().build(vocab_size=vocab_size + 5, value_head=value_head, rules=rules)


@dataclasses.dataclass(frozen=True)
class GivenTokenizer(LettersTask):
    def load(self, *, tokenizer):
        return dataclasses.replace(super().load(), tokenizer=tokenizer)


def test_rows_without_a_token_are_never_sampled():
    config = dataclasses.replace(config_of(task=GivenTokenizer()), model=Padded(max_length=20))
    with on_devices(1):
        parts = make_components(config)
    size = TOKENIZER.vocab_size
    assert parts.model.vocab_size == size + 5
    assert parts.banned_ids == (0, 3, *range(size, size + 5))
    stage = PolicyStage(config, parts)
    params = initialize(parts.model, parts.mesh, jax.random.key(0))
    stage.begin({**params, "unembedding": params["unembedding"].at[size:].set(9.0)})
    metrics, rollouts = stage.step(0, jax.random.key(0))
    assert np.asarray(rollouts.tokens)[np.asarray(rollouts.mask)].max() < size
    assert float(metrics["kl"]) < 1e-3  # sampling and scoring agree


def test_a_tokenizer_larger_than_the_table_is_refused():
    class Small(Padded):
        def build(self, *, vocab_size, value_head, rules):
            return BigramConfig.build(self, vocab_size=8, value_head=value_head, rules=rules)

    config = dataclasses.replace(config_of(task=GivenTokenizer()), model=Small(max_length=20))
    with on_devices(1), pytest.raises(ValueError, match=r"tokenizer\.vocab_size = \d+: expected at most 8, the voc"):
        make_components(config)
