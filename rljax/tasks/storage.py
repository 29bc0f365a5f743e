"""Storage of problems on disk, shared by the dataset builders: written once as array_record, then read into lists.

This module imports tensorflow_datasets, but not TensorFlow.
"""

import contextlib
import dataclasses
import io
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from filelock import FileLock
from tensorflow_datasets.proto import tf_example_pb2

from rljax.tasks.task import Problem

_FIELDS = tuple(field.name for field in dataclasses.fields(Problem))
_JSON = ("info", "messages")  # stored as JSON


def problem_info(builder: tfds.core.DatasetBuilder, description: str) -> tfds.core.DatasetInfo:
    """DatasetInfo of a dataset of problems in the order in which they are generated."""
    features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in _FIELDS})
    return tfds.core.DatasetInfo(builder=builder, description=description, features=features, disable_shuffling=True)


def examples(problems: Iterable[Problem]) -> Iterator[tuple[int, dict[str, str]]]:
    """The (key, features) pairs that a builder's `_generate_examples` yields for the problems."""

    def encoded(problem: Problem) -> dict[str, str]:
        return {**vars(problem), **{name: json.dumps(getattr(problem, name), default=dict) for name in _JSON}}

    return ((key, encoded(problem)) for key, problem in enumerate(problems))


def prepare(
    kind: type[tfds.core.DatasetBuilder], config: tfds.core.BuilderConfig, data_dir: Path
) -> tfds.core.DatasetBuilder:
    """Returns the builder of a dataset, after writing the dataset if it does not exist; other processes wait.

    The folder gets its final name only when it is complete, so the files of an interrupted writer are ignored.
    """
    with _quiet():
        builder = kind(data_dir=str(data_dir), config=config)
    folder = builder.data_path
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"), _quiet():
        if folder.exists():  # written by another process
            return kind(data_dir=str(data_dir), config=config)
        tfds.disable_progress_bar()
        no_network = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_config=no_network, file_format="array_record")
    return builder


@contextlib.contextmanager
def _quiet():
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.disabled = before


def read(builder: tfds.core.DatasetBuilder, split: str) -> list[Problem]:
    """All problems of a split. They are decoded here because the decoder of tensorflow_datasets is slow."""
    source = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)  # pyright: ignore[reportCallIssue]
    return [_problem(record) for record in source.__getitems__(range(len(source)))]


def _problem(record: bytes) -> Problem:
    feature = tf_example_pb2.Example.FromString(record).features.feature  # pyright: ignore[reportAttributeAccessIssue]
    fields: dict = {name: feature[name].bytes_list.value[0].decode() for name in _FIELDS}
    stored = {name: json.loads(fields[name]) for name in _JSON}
    return Problem(**{**fields, **stored, "messages": tuple(stored["messages"])})
