"""Problems on disk: what the dataset builders share. Written once as array_record, read whole into lists.

Importing this imports tensorflow_datasets (never TensorFlow); a task does so when it loads.
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


def problem_info(builder: tfds.core.DatasetBuilder, description: str) -> tfds.core.DatasetInfo:
    """The info of a dataset whose examples are problems, kept in the order in which they are generated."""
    features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in _FIELDS})
    return tfds.core.DatasetInfo(builder=builder, description=description, features=features, disable_shuffling=True)


def examples(problems: Iterable[Problem]) -> Iterator[tuple[int, dict[str, str]]]:
    """The problems as a builder's `_generate_examples` yields them."""
    return ((key, {**vars(problem), "info": json.dumps(dict(problem.info))}) for key, problem in enumerate(problems))


def prepare(
    kind: type[tfds.core.DatasetBuilder], config: tfds.core.BuilderConfig, data_dir: Path
) -> tfds.core.DatasetBuilder:
    """The builder, its dataset written where it is not there yet; of processes that ask at once one writes, all wait.

    What an interrupted writer leaves never counts: the folder takes its name when it is whole.
    """
    with _quiet():
        builder = kind(data_dir=str(data_dir), config=config)
    folder = builder.data_path
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"), _quiet():
        if folder.exists():  # another process was first
            return kind(data_dir=str(data_dir), config=config)
        tfds.disable_progress_bar()
        no_network = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_config=no_network, file_format="array_record")
    return builder


@contextlib.contextmanager
def _quiet():
    """Keeps tensorflow_datasets' own chatter off the terminal."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.disabled = before


def read(builder: tfds.core.DatasetBuilder, split: str) -> list[Problem]:
    """A split's problems, all at once and past tensorflow_datasets' decoding, which takes 70 µs for each of them."""
    source = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)  # pyright: ignore[reportCallIssue]
    return [_problem(record) for record in source.__getitems__(range(len(source)))]


def _problem(record: bytes) -> Problem:
    feature = tf_example_pb2.Example.FromString(record).features.feature  # pyright: ignore[reportAttributeAccessIssue]
    fields: dict = {name: feature[name].bytes_list.value[0].decode() for name in _FIELDS}
    return Problem(**{**fields, "info": json.loads(fields["info"])})
