"""Griffe extension that renders doctests as Python sessions."""

import re

import griffe

SESSION = re.compile(r"^>>> .*(?:\n(?!\n).*)*", flags=re.M)


class Doctests(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            obj.docstring.value = SESSION.sub(lambda found: f"```pycon\n{found[0]}\n```", obj.docstring.value)
