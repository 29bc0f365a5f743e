"""Tasks: problems with a tokenizer and a reward function. `Task.load` prepares and reads the dataset."""

from rljax.tasks.jsonl import JsonlTask
from rljax.tasks.strings import StringsTask
from rljax.tasks.task import Problem, Task, TaskData
from rljax.tasks.tokenizer import Tokenizer
from rljax.tasks.verifier import exact_match

__all__ = ["JsonlTask", "Problem", "StringsTask", "Task", "TaskData", "Tokenizer", "exact_match"]
