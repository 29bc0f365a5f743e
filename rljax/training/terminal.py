"""Text that others wrote, made safe for the terminal."""

import unicodedata


def escaped(text: str) -> str:
    r"""`text` with control and format characters as escapes, so that a model cannot steer the terminal.

    Newlines, tabs and the joiners of scripts and emoji stay.

    >>> escaped("\x1b[2J é\n")
    '\\x1b[2J é\n'
    """
    return "".join(
        x.encode("unicode_escape").decode()
        if unicodedata.category(x) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and x not in "\n\t\u200c\u200d"
        else x
        for x in text
    )
