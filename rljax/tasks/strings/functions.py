"""25 functions f0 … f24 on strings of 1 to 7 of the letters s … z; longer outputs are truncated to 7 letters.

The functions use 20 operations, and any two functions differ on some test string. Composing separately learned
functions follows 2509.25123, with other functions.
"""

from collections.abc import Callable, Sequence
from functools import partial

LETTERS = "stuvwxyz"
LONGEST = 7


def reverse(x: str) -> str:
    return x[::-1]


def rotate(x: str) -> str:
    return x[1:] + x[0]


def duplicate(x: str) -> str:
    return x + x


def double_letters(x: str) -> str:
    return "".join(letter + letter for letter in x)


def drop_every_second(x: str) -> str:
    return x[::2]


def overwrite_every_second(x: str, *, by: str) -> str:
    return "".join(by if i % 2 else letter for i, letter in enumerate(x))


def swap_halves(x: str) -> str:
    """Swaps the halves; a middle letter belongs to the first half."""
    half = (len(x) + 1) // 2
    return x[half:] + x[:half]


def swap_neighbors(x: str) -> str:
    return "".join(x[i : i + 2][::-1] for i in range(0, len(x), 2))


def shift_letters(x: str, *, by: int) -> str:
    """Shifts each letter by `by` places in the alphabet, cyclically."""
    return "".join(LETTERS[(LETTERS.index(letter) + by) % len(LETTERS)] for letter in x)


def shift_first(x: str) -> str:
    return shift_letters(x[0], by=1) + x[1:]


def mirror_letters(x: str) -> str:
    return x.translate(str.maketrans(LETTERS, LETTERS[::-1]))


def sort_letters(x: str, *, descending: bool) -> str:
    return "".join(sorted(x, reverse=descending))


def interleave_reversed(x: str) -> str:
    return "".join(a + b for a, b in zip(x, x[::-1], strict=True))


def evens_first(x: str) -> str:
    return x[::2] + x[1::2]


def palindrome(x: str) -> str:
    return x + x[::-1]


def repeat_first(x: str) -> str:
    return 2 * x[0] + x


def repeat_last(x: str) -> str:
    return x + 2 * x[-1]


def surround(x: str, *, left: str = "", right: str = "") -> str:
    return left + x + right


def separate(x: str, *, by: str) -> str:
    return by.join(x)


def without_end(x: str, *, first: int = 0, last: int = 0) -> str:
    """Removes `first` letters at the start and `last` at the end; returns the first letter if none would be left."""
    return x[first : len(x) - last] or x[:1]


FUNCTIONS: dict[str, Callable[[str], str]] = {
    f"f{i}": function
    for i, function in enumerate((
        rotate,
        partial(shift_letters, by=3),
        duplicate,
        partial(without_end, first=1),
        swap_neighbors,
        mirror_letters,
        partial(surround, right="w"),
        partial(sort_letters, descending=False),
        drop_every_second,
        reverse,
        repeat_first,
        shift_first,
        partial(shift_letters, by=1),
        palindrome,
        partial(separate, by="y"),
        swap_halves,
        partial(surround, left="t"),
        repeat_last,
        evens_first,
        double_letters,
        partial(sort_letters, descending=True),
        partial(overwrite_every_second, by="x"),
        partial(shift_letters, by=-2),
        interleave_reversed,
        partial(without_end, last=1),
    ))
}  # fmt: skip


def operation(name: str) -> str:
    """Name of the operation of a function, such as `rotate`."""
    function = FUNCTIONS[name]
    return function.func.__name__ if isinstance(function, partial) else function.__name__


def apply(names: Sequence[str], text: str) -> str:
    """Applies the functions from right to left, f_i(f_j(x)) for (f_i, f_j), and truncates each output to 7 letters.

    >>> apply(["f9"], "stuv"), apply(["f6", "f9"], "stuv"), apply(["f9", "f6"], "stuv")
    ('vuts', 'vutsw', 'wvuts')

    Raises ValueError if a name is unknown or `text` is not 1 to 7 of the letters s … z.
    """
    if not 1 <= len(text) <= LONGEST or not set(text) <= set(LETTERS):
        raise ValueError(f"text = {text!r}: expected 1 to {LONGEST} of the letters {LETTERS}")
    for name in reversed(names):
        if name not in FUNCTIONS:
            raise ValueError(f"names = {list(names)!r}: {name!r} is unknown; expected f0 … f{len(FUNCTIONS) - 1}")
        text = FUNCTIONS[name](text)[:LONGEST]
    return text
