"""Loading of the tokenizer that belongs to a folder."""

import os
from importlib.util import find_spec
from pathlib import Path

from rljax._folders import inside, require_folder
from rljax.text import sentencepiece
from rljax.text.protocol import TextTokenizer

_NEEDED = ("jinja2", "tokenizers")


def load_tokenizer(folder: str | os.PathLike[str]) -> TextTokenizer:
    """The tokenizer of `folder`: that of tokenizer.json, or else the SentencePiece model in tokenizer.model.

    Raises FileNotFoundError if the folder does not exist, ValueError if it has neither file or a file is invalid, and
    ImportError if a tokenizer.json needs the extra `hf`.
    """
    folder = require_folder(Path(folder))
    if (folder / "tokenizer.json").is_file():
        return _huggingface(folder)
    if (folder / sentencepiece.FILE).is_file():
        return sentencepiece.Tokenizer(inside(folder, sentencepiece.FILE).read_bytes())
    raise ValueError(f"folder = {str(folder)!r}: expected tokenizer.json or {sentencepiece.FILE} in it")


def _huggingface(folder: Path) -> TextTokenizer:
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ImportError(f"{folder / 'tokenizer.json'} needs {', '.join(missing)}: pip install 'rljax-llm[hf]'",
                          name="rljax.text.huggingface")  # fmt: skip
    from rljax.text.huggingface import HuggingFaceTokenizer  # its packages may be absent

    return HuggingFaceTokenizer(folder)
