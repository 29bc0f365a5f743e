"""Python samples of Markdown pages."""

import re
from pathlib import Path


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
