"""A griffe extension: doctests are shown as Python sessions, and sections that would be shown wrongly are errors."""

import re

import griffe

SESSION = re.compile(r"^>>> .*(?:\n(?!\n).*)*", flags=re.M)


class Docstrings(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            check(obj.docstring, obj.path)
            obj.docstring.value = SESSION.sub(lambda found: f"```pycon\n{found[0]}\n```", obj.docstring.value)


def check(docstring: griffe.Docstring, path: str) -> None:
    """Raises ValueError if a line of prose is parsed as a section, or a second line of `Returns` as another value."""
    for section in docstring.parse("google", warnings=False):
        if section.kind is griffe.DocstringSectionKind.admonition:
            raise ValueError(f"{path}: '{section.title}:' starts a section; put a blank line before the indented lines")
        values = section.value if section.kind is griffe.DocstringSectionKind.returns else []
        if len(values) > 1 and not all(value.name for value in values):
            raise ValueError(f"{path}: Returns: indent continued lines, or give each value as `name: description`")
