"""Checker of the project's English: `python -m tools.prose [PATH ...]` lists wording that is hard to read.

It checks docstrings, comments and string literals of Python files, and Markdown outside code and formulas.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

PATTERNS = {
    r"^\"\"\"\W*(What|How|Which|Where)\b": "open with a noun phrase that names the thing",
    r"\b(?:[A-Z]\w*Error|None|True|False|nothing|null|NaN|[01])\s+where\b"
    r"|\bwhere\s+(?:there\s+(?:is|are)|(?:it|one|they)\s+\w+\s+(?:given|not|none|None)|not|given|needed|possible)\b": (
        "'if' for a condition, 'where' for a place"
    ),
    r"(?<!there )\b(?:is|are|was|were|be) (?:no|none)\b(?! (?:longer|more|less|fewer)\b)": "'is not a', 'are not'",
    r"\b(?:[Ll]ies?|lay|lying)\b": "arrays are stored, sharded or laid out",
    r"\b(?:[Ss]ays?|said|saying)\b": "functions return, compute, list; errors name",
    r"\b(?:worth|kin)\b|['’]s way\b": "name the value, the type or the method",
    r"\b(?:tokens?|rows?|bytes|cycles|steps|times|samples|[KMGT]i?B|m?s|once|one|\d+) an? (?:second|token|row|step"
    r"|rollout|chip|core|device|worker|process|prompt|group|problem|sequence|tile|minute|run|year)\b": (
        "'per' for rates"
    ),
    r"(?i)\b\w*(?:(?:normal|standard|vector|local|initial|penal|optim|serial|summar|general|regular|material|minim|maxim"
    r"|recogn|organ|util|random|quant|tokenis|categor|special|visual)is(?:e[ds]?|ing|ations?)"
    r"|(?:behavi|col|fav|neighb)ours?|centred?|judgement|learnt|misspelt|spelt|labelled|cancelled|grey|whilst)\b": (
        "American spelling"
    ),
    r"\bas there\b(?! (?:is|are)\b)|\bas it stands\b|\bof its own accord\b|\bwherever its\b": "name what it refers to",
}
RULES = [(re.compile(pattern), advice) for pattern, advice in PATTERNS.items()]
EXCEPTIONS = {"CHANGELOG.md", "tools/prose.py", "tests/prose_test.py"}  # old names; the patterns themselves
CODE = re.compile(r"^```.*?^```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$|\]\([^)]*\)", flags=re.M | re.S)


def blank(text: re.Match) -> str:
    """The line breaks of the matched text, so that line numbers do not change."""
    return "\n" * text[0].count("\n")


def passages(path: Path) -> Iterator[tuple[int, str]]:
    """(number of the first line, text) of each passage of prose in a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield 1, CODE.sub(blank, text)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            source = ast.get_source_segment(text, node) or ""
            yield node.lineno, CODE.sub(blank, source if source.startswith('"""') else node.value)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], CODE.sub(blank, token.string)


def faults(path: Path) -> list[str]:
    """One line per fault: file, line number, the words found and the advice."""
    found = {
        (first + text[: match.start()].count("\n"), match[0], advice)
        for first, text in passages(path)
        for rule, advice in RULES
        for match in rule.finditer(text)
    }
    return [f"{path}:{line}: {words!r}: {advice}" for line, words, advice in sorted(found)]


def main() -> None:
    command = ["git", "ls-files", *sys.argv[1:]]
    listed = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.split()
    paths = [path for path in listed if path.endswith((".py", ".md")) and path not in EXCEPTIONS]
    lines = [line for path in paths for line in faults(Path(path))]
    print(*lines, sep="\n", end="\n" if lines else "")
    sys.exit(f"{len(lines)} passages to rewrite" if lines else 0)


if __name__ == "__main__":
    main()
