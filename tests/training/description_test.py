"""Descriptions of configs are equal in every process, and differ if the configs differ."""

import collections
import dataclasses
import datetime
import enum
import functools
import json
import logging
import math
import re
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import algorithms
from rljax.training.description import describe, differences
from tests.training.subprocesses import ROOT, environment

pytestmark = pytest.mark.standard_promotion
WORDS = ("x", "yy", "zzz", "four", "fifth", "a", "b", "c")


class Plain:
    """An object whose repr contains its address."""

    def __init__(self, *words):
        self.words = set(words)
        self.itself = self
        self.lock = threading.Lock()

    def method(self, prompt, completion, answer):
        return 0.0

    @classmethod
    def of_the_class(cls, prompt, completion, answer):
        return 0.0


class Slots:
    __slots__ = ("weight", "words")

    def __init__(self, words, weight):
        self.words, self.weight = frozenset(words), weight


class Callable(Plain):
    def __call__(self, prompt, completion, answer):
        return 0.0


class Shown:
    def __init__(self, words):
        self.words = set(words)

    def __repr__(self):
        return f"Shown({self.words})"


class Unpicklable:
    def __reduce_ex__(self, protocol):
        raise TypeError("no")


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Fields:
    words: frozenset[str]
    keyed: dict


def reward(prompt, completion, answer, *, stop=()):
    return 0.0


def make(words, n=1):
    def closure(prompt, completion, answer):
        return words, closure

    return closure, lambda x, n=n: n


def values(words=WORDS, n=1):
    """One value of every kind that a config may contain, built from words and a number."""
    cyclic: list = [n]
    cyclic.append({"cyclic": cyclic})
    closure, lambda_ = make(set(words), n)
    return {
        "partial": functools.partial(reward, stop={*words, str(n)}),
        "partial of a partial": functools.partial(functools.partial(reward, n), stop=[frozenset(words)]),
        "set of sets": {frozenset(words[i:]) for i in range(len(words))} | {frozenset({n})},
        "dictionary by a set": {frozenset(words): n, **{word: n for word in set(words)}},
        "plain": Plain(*words, str(n)),
        "slots": Slots(words, n),
        "callable": Callable(*words, str(n)),
        "shown": Shown([*words, str(n)]),
        "method": Plain(*words, str(n)).method,
        "method of a set": {*words, str(n)}.__contains__,
        "closure": closure if n == 1 else make({*words, "more"})[0],
        "default": lambda_,
        "jitted closure": jax.jit(closure) if n == 1 else jax.jit(make({*words, "more"})[0]),
        "jitted partial": jax.jit(functools.partial(reward, stop=frozenset({*words, n}))),
        "cached": functools.cache(make({*words, n})[0]),
        "fields": Fields(frozenset(words), {word: n for word in set(words)}),
        "array": np.arange(3) + n,
        "large array": np.arange(3000) + n,
        "jax array": jnp.full((2,), n, jnp.bfloat16),
        "key": jax.random.key(n),
        "scalar": np.float32(n),
        "counter": collections.Counter([*words, *range(n)]),
        "deque": collections.deque(sorted(words), maxlen=n),
        "pattern": re.compile(f"a{n}"),
        "enum": Color(n),
        "date": datetime.date(2026, 11, n),
        "fraction": Fraction(n, 3),
        "bytes": b"ab" * n,
        "many bytes": b"ab" * (100 + n),
        "cyclic": cyclic,
        "optax": optax.chain(optax.clip(n), optax.adam(optax.linear_schedule(0.0, n, 10))),
        "algorithm": algorithms.dapo(low=0.1 * n, high=jnp.float32(0.3)),
        "generator": np.random.default_rng(n),
        "logger": logging.getLogger(f"logger {n}"),
    }


def fixed():
    return {
        "unpicklable": Unpicklable(), "lock": threading.Lock(), "iterator": (i for i in range(3)), "class": Plain,
        "of the class": Plain.of_the_class, "function": reward, "jax function": jax.nn.relu, "ufunc": np.add,
        "module": json, "builtin": max, "path": Path("a/b"), "dtype": np.dtype("float32"), "nan": math.nan,
        "infinity": -math.inf, "long double": np.longdouble(1) / 2,
    }  # fmt: skip


PROGRAM = """if True:
    import dataclasses, functools, json, sys
    from pathlib import Path
    from rljax.tasks import JsonlTask
    from rljax.training.checkpoint.folder import RunFolder
    from tests.training import tiny
    from tests.training.description_test import Plain, describe, fixed, reward, values
    print(json.dumps(describe({**values(), **fixed()}), allow_nan=False))
    bound = functools.partial(reward, stop={"x", "yy", "zzz"}, other=Plain("x", "yy"))
    task = JsonlTask("x.jsonl", reward=bound)
    folder = RunFolder(Path(sys.argv[1]))
    folder.hold()
    (folder.path / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)
    folder.claim(dataclasses.replace(tiny.config, task=task), Path("recipe.py"), [])
"""


def described(run, hash_seed):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(run)], env=environment(PYTHONHASHSEED=hash_seed),
                          cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_description_is_the_same_in_every_process_and_its_run_goes_on(tmp_path):
    first, second = described(tmp_path / "run", "0"), described(tmp_path / "run", "1")
    assert differences(json.loads(first), json.loads(second)) == []
    assert json.loads(first) == json.loads(second)
    assert " at 0x" not in first


def test_what_differs_is_described_differently():
    one, two = (json.loads(json.dumps(describe(values(n=n)), allow_nan=False)) for n in (1, 2))
    assert json.loads(json.dumps(describe(values()))) == one
    assert [name for name in one if one[name] == two[name]] == []


def test_descriptions_show_the_fields_of_the_object():
    assert describe(functools.partial(reward, stop={"x", "yy", "zzz"})) == {
        "function": "reward", "bound": [{"stop": ["x", "yy", "zzz"]}]}  # fmt: skip
    assert describe(Slots("ba", 0.5)) == {"type": "Slots", "weight": 0.5, "words": ["a", "b"]}
    assert describe(Plain("b", "a")) == {"type": "Plain", "words": ["a", "b"], "itself": "Plain", "lock": "lock"}
    assert describe(np.float32([1, math.inf])) == {
        "type": "array", "dtype": "float32", "shape": [2], "values": [1.0, "inf"]}  # fmt: skip
    assert describe(fixed()) == {
        "unpicklable": "Unpicklable", "lock": "lock", "iterator": "generator", "class": "Plain",
        "of the class": "Plain.of_the_class", "function": "reward", "jax function": "relu", "ufunc": "add",
        "module": "json", "builtin": "max", "path": "a/b", "dtype": "float32", "nan": "nan", "infinity": "-inf",
        "long double": "0.5",
    }  # fmt: skip


def test_keywords_are_in_the_order_in_which_they_were_given():
    assert list(describe(functools.partial(reward, zebra=1, ant=2))["bound"][0]) == ["zebra", "ant"]


def test_differences_are_named_by_their_fields():
    a, b = (describe(Fields(frozenset(), {"low": low})) for low in (0.2, 0.3))
    assert differences(a, b) == ["keyed.low: 0.2 -> 0.3"]
    assert differences(a, a) == []
