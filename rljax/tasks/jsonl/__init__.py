"""Any local jsonl file as a task."""

from rljax.tasks.jsonl.task import JsonlTask

__all__ = ["JsonlTask"]
