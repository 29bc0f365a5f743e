"""Tasks: problems with a tokenizer and a verifier. Datasets are prepared and read when a task loads."""

from rljax.tasks.jsonl import JsonlTask
from rljax.tasks.strings import StringsTask
from rljax.tasks.task import Problem, Task, TaskData
from rljax.tasks.tokenizer import Tokenizer
from rljax.tasks.verifier import exact_match

__all__ = ["JsonlTask", "Problem", "StringsTask", "Task", "TaskData", "Tokenizer", "exact_match"]
