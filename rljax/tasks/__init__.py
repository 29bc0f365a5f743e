"""Tasks: problems with a tokenizer and a reward function. `Task.load` prepares and reads the dataset."""

from rljax.tasks.gym import ReasoningGymTask
from rljax.tasks.jsonl import JsonlTask
from rljax.tasks.strings import StringsTask
from rljax.tasks.task import Problem, Task, TaskData
from rljax.tasks.verifier import exact_match
from rljax.text import Tokenizer

__all__ = ["JsonlTask", "Problem", "ReasoningGymTask", "StringsTask", "Task", "TaskData", "Tokenizer", "exact_match"]
