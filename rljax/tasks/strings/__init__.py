"""The string task: 25 functions on short strings, learned separately and then composed."""

from rljax.tasks.strings.task import StringsTask, string_tokenizer

__all__ = ["StringsTask", "string_tokenizer"]
