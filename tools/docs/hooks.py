"""MkDocs hooks: algorithms on the pages of their families, links to papers, formulas as MathML."""

import ast
import html
import inspect
import re
from itertools import pairwise
from pathlib import Path

import griffe
from latex2mathml.converter import convert

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "rljax/algorithms"
ALGORITHM = re.compile(r"^\{\{ (\w+) \}\}$", flags=re.M)
FIELDS = re.compile(r"^\{\{ fields: (\w+) \}\}$", flags=re.M)
NEEDS = re.compile(r"^\{\{ needs: (\w+) \}\}$", flags=re.M)
ROW = re.compile(r"^\| `((\w+)(?:\([^`]*\))?)` \|", flags=re.M)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.S)
CELL = re.compile(r"<td>.*?</td>", flags=re.S)
BREAK_AFTER = re.compile(r"\(|_(?=\w{12})")
CODE = re.compile(r"<code>[^<]*</code>")
PAPER = re.compile(r"\b(\d{4}\.\d{5})\b")
UNLINKED = re.compile(r"<(a|pre|code|title)\b.*?</\1>|<[^>]*>", flags=re.S)


def on_page_markdown(markdown: str, page, **_) -> str:
    """Replaces `{{ grpo }}` with that algorithm, `{{ fields: Batch }}` with a class, `{{ needs: BATCH }}` with a table.

    Appends the algorithms of a family that its page does not mention.
    """
    folder, _, name = page.file.src_uri.removesuffix(".md").rpartition("/")
    if page.file.src_uri == "algorithms/index.md":
        pages = {name: path.stem for path in SOURCES.glob("[!_]*.py") for name in exported(path)}
        markdown = ROW.sub(lambda row: f"| [`{row[1]}`]({pages[row[2]]}.md#{row[2]}) |", markdown)
    elif folder == "algorithms" and (SOURCES / f"{name}.py").exists():
        rest = [x for x in exported(SOURCES / f"{name}.py") if x not in ALGORITHM.findall(markdown)]
        markdown += "".join(f"\n\n{{{{ {x} }}}}\n" for x in rest)
    for marker, text in ((FIELDS, fields), (NEEDS, needs), (ALGORITHM, algorithm)):
        markdown = marker.sub(lambda found, text=text: text(found[1]), markdown)
    return markdown


def exported(path: Path) -> list[str]:
    """Returns the `__all__` of a file."""
    assigned = (node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign))
    (names,) = (node.value for node in assigned if ast.unparse(node.targets[0]) == "__all__")
    return ast.literal_eval(names)


def algorithm(name: str) -> str:
    """Returns the docstring of an algorithm without its example, and the expression that it returns, as Markdown."""
    for path in sorted(SOURCES.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for function in ast.parse(text).body:
            if isinstance(function, ast.FunctionDef) and function.name == name:
                says = described(ast.get_docstring(function) or "")
                (value,) = (node.value for node in function.body if isinstance(node, ast.Return))
                named = [node for node in function.body if isinstance(node, ast.Assign)]
                sources = [ast.get_source_segment(text, node) or "" for node in (*named, value)]
                expression = "\n".join(inspect.cleandoc("    " + source) for source in sources)
                return f"## [`{name}`][rljax.algorithms.{name}] {{ #{name} }}\n\n{says}\n\n```python\n{expression}\n```"
    raise ValueError(f"name = {name!r}: expected an algorithm of rljax.algorithms")


def described(docstring: str) -> str:
    """Returns the prose of a Google-style docstring and a table of its parameters as Markdown."""
    parts = []
    for section in griffe.Docstring(docstring.split("\n>>>")[0]).parse("google", warnings=False):
        if section.kind is griffe.DocstringSectionKind.text:
            parts.append(section.value)
        elif section.kind is griffe.DocstringSectionKind.parameters:
            texts = {x.name: x.description.replace("\n", " ").replace("|", "\\|") for x in section.value}
            rows = (f"| `{name}` | {text} |" for name, text in texts.items())
            parts.append("\n".join(["| parameter | description |", "|---|---|", *rows]))
    return "\n\n".join(parts).strip()


def fields(name: str) -> str:
    """Returns the source of a class of rljax.objective, whose comments describe its fields, as Markdown."""
    text = (ROOT / "rljax/objective.py").read_text(encoding="utf-8")
    (found,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == name)
    lines = text.splitlines()[found.body[1].lineno - 1 : found.end_lineno]
    return "```python\n" + inspect.cleandoc("\n" + "\n".join(lines)) + "\n```"


def needs(name: str) -> str:
    """Returns a table of rljax.training.needs as Markdown: fields, and how the trainer supplies them."""
    tree = ast.parse((ROOT / "rljax/training/needs.py").read_text(encoding="utf-8"))
    assigned = (node for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name)
    (table,) = (node.value.args[0] for node in assigned if isinstance(node.value, ast.Call))
    rows = (f"| `{field}` | {source} |" for field, source in ast.literal_eval(table).items())
    return "\n".join(["| field | supplied by the trainer |", "|---|---|", *rows])


def on_page_content(content: str, **_) -> str:
    content = FORMULA.sub(lambda found: mathml(html.unescape(found[2]).strip(), found[1]), content)
    return linked(CELL.sub(lambda cell: CODE.sub(breakable, cell[0]), content))


def breakable(code: re.Match) -> str:
    """Lets a narrow table cell break code after `(` and inside long names."""
    return BREAK_AFTER.sub(lambda found: f"{found[0]}<wbr>", code[0])


def mathml(formula: str, tag: str) -> str:
    """LaTeX as MathML; the parts of a displayed formula between `\\qquad` can be put on lines of their own."""
    if tag == "span":
        return convert(formula, display="inline")
    parts = (convert(part.strip(), display="block") for part in formula.split(r"\qquad"))
    return f'<div class="formula">{"".join(parts)}</div>'


def linked(content: str) -> str:
    """Links the arXiv numbers in running text."""
    ends = [0, *(end for tag in UNLINKED.finditer(content) for end in tag.span()), len(content)]
    pieces = [content[a:b] for a, b in pairwise(ends)]
    for i in range(0, len(pieces), 2):
        pieces[i] = PAPER.sub(r'<a href="https://arxiv.org/abs/\1">\1</a>', pieces[i])
    return "".join(pieces)
