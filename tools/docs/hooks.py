"""MkDocs hooks: docstrings of algorithms on the pages of their families, links to papers, formulas as MathML."""

import ast
import html
import inspect
import re
from itertools import pairwise
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "rljax/algorithms"
ALGORITHM = re.compile(r"^\{\{ (\w+) \}\}$", flags=re.M)
FIELDS = re.compile(r"^\{\{ fields: (\w+) \}\}$", flags=re.M)
README = re.compile(r"^\{\{ readme: (.+) \}\}$", flags=re.M)
NEEDS = re.compile(r"^\{\{ needs: (\w+) \}\}$", flags=re.M)
ROW = re.compile(r"^\| `((\w+)(?:\([^`]*\))?)` \|", flags=re.M)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.S)
PAPER = re.compile(r"\b(\d{4}\.\d{5})\b")
UNLINKED = re.compile(r"<(a|pre|code|title)\b.*?</\1>|<[^>]*>", flags=re.S)


def on_page_markdown(markdown: str, page, **_) -> str:
    """Expands `{{ grpo }}` (an algorithm), `{{ fields: Batch }}`, `{{ needs: BATCH }}` and `{{ readme: Title }}`.

    Algorithms that the page of their family does not mention are added at its end.
    """
    folder, _, name = page.file.src_uri.removesuffix(".md").rpartition("/")
    if page.file.src_uri == "algorithms/index.md":
        pages = {name: path.stem for path in SOURCES.glob("[!_]*.py") for name in exported(path)}
        markdown = ROW.sub(lambda row: f"| [`{row[1]}`]({pages[row[2]]}.md#{row[2]}) |", markdown)
    elif folder == "algorithms" and (SOURCES / f"{name}.py").exists():
        rest = [x for x in exported(SOURCES / f"{name}.py") if x not in ALGORITHM.findall(markdown)]
        markdown += "".join(f"\n\n{{{{ {x} }}}}\n" for x in rest)
    for marker, text in ((README, section), (FIELDS, fields), (NEEDS, needs), (ALGORITHM, algorithm)):
        markdown = marker.sub(lambda found, text=text: text(found[1]), markdown)
    return markdown


def exported(path: Path) -> list[str]:
    """The `__all__` of a file."""
    assigned = (node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign))
    (names,) = (node.value for node in assigned if ast.unparse(node.targets[0]) == "__all__")
    return ast.literal_eval(names)


def algorithm(name: str) -> str:
    """The docstring and the expression of an algorithm, including the assignments that the expression uses."""
    for path in sorted(SOURCES.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for function in ast.parse(text).body:
            if isinstance(function, ast.FunctionDef) and function.name == name:
                says = inspect.cleandoc(ast.get_docstring(function) or "").split("\n>>>")[0].strip()
                (value,) = (node.value for node in function.body if isinstance(node, ast.Return))
                named = [node for node in function.body if isinstance(node, ast.Assign)]
                sources = [ast.get_source_segment(text, node) or "" for node in (*named, value)]
                expression = "\n".join(inspect.cleandoc("    " + source) for source in sources)
                return f"## [`{name}`][rljax.algorithms.{name}] {{ #{name} }}\n\n{says}\n\n```python\n{expression}\n```"
    raise ValueError(f"name = {name!r}: expected an algorithm of rljax.algorithms")


def section(title: str) -> str:
    """The body of a section of README, without links to files outside the site."""
    body = (ROOT / "README.md").read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0].strip()
    return re.sub(r"\[([^\]]*)\]\((?!http)[^)]*\)", r"\1", body)


def fields(name: str) -> str:
    """The source of a class of rljax.objective, whose comments describe its fields."""
    text = (ROOT / "rljax/objective.py").read_text(encoding="utf-8")
    (found,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == name)
    lines = text.splitlines()[found.body[1].lineno - 1 : found.end_lineno]
    return "```python\n" + inspect.cleandoc("\n" + "\n".join(lines)) + "\n```"


def needs(name: str) -> str:
    """A dictionary of rljax.training.needs as a Markdown table."""
    tree = ast.parse((ROOT / "rljax/training/needs.py").read_text(encoding="utf-8"))
    assigned = (node for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name)
    (table,) = (node.value.args[0] for node in assigned if isinstance(node.value, ast.Call))
    rows = (f"| `{field}` | {source} |" for field, source in ast.literal_eval(table).items())
    return "\n".join(["| field | supplied by the trainer |", "|---|---|", *rows])


def on_page_content(content: str, **_) -> str:
    return linked(FORMULA.sub(lambda f: convert(html.unescape(f[2]).strip(), display=DISPLAY[f[1]]), content))


DISPLAY = {"span": "inline", "div": "block"}


def linked(content: str) -> str:
    """Links the arXiv numbers in running text."""
    ends = [0, *(end for tag in UNLINKED.finditer(content) for end in tag.span()), len(content)]
    pieces = [content[a:b] for a, b in pairwise(ends)]
    for i in range(0, len(pieces), 2):
        pieces[i] = PAPER.sub(r'<a href="https://arxiv.org/abs/\1">\1</a>', pieces[i])
    return "".join(pieces)
