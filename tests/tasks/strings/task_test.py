import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from rljax.tasks import StringsTask, storage
from rljax.tasks.strings import dataset, problems
from tests.tasks.chats import chat_tokenizer

SMALL = {"demonstrations": 300, "prompts": 100, "problems": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def data(folder):
    return StringsTask(**SMALL, data_dir=folder).load()


def test_a_model_brings_its_tokenizer(folder, data):
    tokenizer = chat_tokenizer()
    found = StringsTask(**SMALL, data_dir=folder).load(tokenizer=tokenizer)
    assert found.tokenizer is tokenizer
    assert (found.stop_ids, found.prompts) == (tokenizer.stop_ids, data.prompts)


def test_what_is_read_is_what_was_generated_in_order(data):
    assert data.demonstrations == list(problems.demonstrations(0, 300))
    assert data.prompts == list(problems.prompts(0, 100))
    assert list(data.held_out) == list(problems.LEVELS)
    for level, of_level in data.held_out.items():
        assert of_level == list(problems.held_out(level, 0, 20))
    assert data.headline == "level 2 held-out pairs"


def test_the_solutions_earn_the_reward_by_the_right_chain(data):
    for problem in (*data.demonstrations, *data.prompts, *itertools.chain(*data.held_out.values())):
        if not problem.prompt.endswith(" "):  # the solution of a single step is only the output
            assert data.reward(problem.prompt, problem.solution, problem.answer) == 1.0
            assert data.checks["right chain"](problem.prompt, problem.solution)
            assert data.reward(problem.prompt, problem.solution[:-1], problem.answer) == 0.0
        assert data.tokenizer.decode(data.tokenizer.encode(problem.solution)) == problem.solution


def test_loading_again_prepares_nothing(data, folder, monkeypatch):
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", None)
    assert StringsTask(**SMALL, data_dir=str(folder)).load().demonstrations == data.demonstrations


def test_the_examples_are_problems(data, folder):
    config = dataset.StringFunctionsConfig.of(seed=0, **SMALL)
    source = storage.prepare(dataset.StringFunctions, config, folder).as_data_source(split="prompts")
    assert source[3]["prompt"].decode() == data.prompts[3].prompt
    assert source[3]["answer"].decode() == data.prompts[3].answer


def test_another_seed_is_another_dataset(data, folder):
    other = StringsTask(**SMALL, seed=1, data_dir=folder).load()
    assert other.demonstrations != data.demonstrations
    assert other.tokenizer.model_proto == data.tokenizer.model_proto


def test_an_interrupted_preparation_leaves_nothing_that_counts(tmp_path, monkeypatch):
    def interrupted(seed, count):
        yield from list(problems.held_out("level 1", seed, 5))
        raise KeyboardInterrupt

    task = StringsTask(**SMALL, data_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(problems, "prompts", interrupted)
        with pytest.raises(KeyboardInterrupt):
            task.load()
    assert len(task.load().prompts) == 100


# Code of one of three processes that import their modules and then wait for each other.
PREPARE = """
import hashlib, multiprocessing, os, sys
from rljax.tasks import StringsTask, storage

def load():
    together.wait()
    data = StringsTask(demonstrations=1000, prompts=50, problems=5, data_dir=sys.argv[1]).load()
    found = repr((data.demonstrations, data.prompts, data.held_out))
    os.write(1, (hashlib.sha256(found.encode()).hexdigest() + chr(10)).encode())  # one write; print uses two

several = multiprocessing.get_context("fork")
together = several.Barrier(3)
processes = [several.Process(target=load) for _ in range(3)]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(any(process.exitcode for process in processes))
"""


def test_several_processes_prepare_at_once(tmp_path):
    """Without the lock, one process succeeds and the others raise FileExistsError."""
    command = [sys.executable, "-c", PREPARE, str(tmp_path / "data")]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = done.stdout.split()
    assert len(results) == 3
    assert len(set(results)) == 1
    assert len(results[0]) == 64


@pytest.mark.parametrize(("field", "value"), [("demonstrations", 0), ("prompts", -1), ("problems", 0), ("seed", -1)])
def test_fields_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=rf"task\.{field} = {value}: expected"):
        StringsTask(**{field: value})
