"""Task for problems in a local jsonl file."""

from rljax.tasks.jsonl.task import JsonlTask

__all__ = ["JsonlTask"]
