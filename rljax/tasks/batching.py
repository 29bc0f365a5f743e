"""From problems to batches: rows of token ids, and a grain iterator over them whose state is a checkpoint's to keep.

Rows are dictionaries of NumPy arrays: `tokens [R, T] int32`, `segment_ids [R, T] int32` (0 = pad, 1, 2, … the row's
sequences) and, where there is something to learn, `mask [R, T] bool`, true on the solution and its end.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from rljax.tasks.task import Problem
from rljax.tasks.tokenizer import EOS, Tokenizer

Rows = dict[str, Int[np.ndarray, "R T"] | Bool[np.ndarray, "R T"]]


def pack(problems: Sequence[Problem], tokenizer: Tokenizer, row_length: int, *, end: int = EOS) -> Rows:
    """Demonstrations `[prompt | solution | end]`, several a row: each goes where the least room is left after it.

    Raises ValueError for a problem without a solution, or one that is longer than a row.
    """
    if not problems:
        raise ValueError("problems is empty: expected at least one to pack")
    room: list[list[int]] = [[] for _ in range(row_length + 1)]  # rows by the number of tokens that still fit
    rows: list[list[tuple[list[int], int]]] = []
    for problem in problems:
        tokens, start = _demonstration(problem, tokenizer, row_length, end)
        left = next((k for k in range(len(tokens), row_length + 1) if room[k]), None)
        if left is None:
            left = row_length
            room[left].append(len(rows))
            rows.append([])
        row = room[left].pop()
        rows[row].append((tokens, start))
        room[left - len(tokens)].append(row)
    return _filled(rows, row_length)


def _demonstration(problem: Problem, tokenizer: Tokenizer, row_length: int, end: int) -> tuple[list[int], int]:
    """(tokens, where the solution starts)."""
    if not problem.solution:
        raise ValueError(f"problems: {problem.prompt!r} has no solution; expected one to learn from in each")
    prompt = _prompt(problem, tokenizer)
    tokens = [*prompt, *tokenizer.encode(problem.solution), end]
    if len(tokens) > row_length:
        raise ValueError(f"row_length = {row_length}: {problem.prompt!r} with its solution has {len(tokens)} tokens; "
                         "raise row_length or leave the problem out")  # fmt: skip
    return tokens, len(prompt)


def _filled(rows: list[list[tuple[list[int], int]]], row_length: int) -> Rows:
    tokens, segment_ids = np.zeros((2, len(rows), row_length), np.int32)
    mask = np.zeros((len(rows), row_length), bool)
    for r, row in enumerate(rows):
        end = 0
        for segment, (ids, start) in enumerate(row, 1):
            begin, end = end, end + len(ids)
            tokens[r, begin:end] = ids
            segment_ids[r, begin:end] = segment
            mask[r, begin + start : end] = True
    return {"tokens": tokens, "segment_ids": segment_ids, "mask": mask}


def encode_prompts(problems: Sequence[Problem], tokenizer: Tokenizer, length: int, argument: str = "length") -> Rows:
    """Prompts, one per row, padded on the left to `length` columns. No mask: nothing has been chosen yet.

    Raises ValueError for an empty prompt, and for a longer one, naming the `argument` that gave the length.
    """
    prompts = [_prompt(problem, tokenizer) for problem in problems]
    lengths = [len(ids) for ids in prompts]
    if max(lengths, default=0) > length:
        longest = lengths.index(max(lengths))
        raise ValueError(f"{argument} = {length}: expected at least the {lengths[longest]} tokens of the prompt "
                         f"{problems[longest].prompt!r}; raise it or leave the problem out")  # fmt: skip
    tokens, segment_ids = np.zeros((2, len(problems), length), np.int32)
    for r, ids in enumerate(prompts):
        tokens[r, length - len(ids) :] = ids
        segment_ids[r, length - len(ids) :] = 1
    return {"tokens": tokens, "segment_ids": segment_ids}


def _prompt(problem: Problem, tokenizer: Tokenizer) -> list[int]:
    ids = tokenizer.encode(problem.prompt)
    if not ids:
        raise ValueError("problems: a prompt is empty; its first token would have nothing to be predicted from")
    return ids


def batches(arrays: dict[str, np.ndarray], batch_size: int, seed: int):
    """An endless grain iterator over batches of the arrays' rows, reshuffled every epoch.

    `get_state()` gives a JSON-like value, and `set_state` of it goes on with exactly the batch that was next. Raises
    ValueError where there are no rows, the arrays differ in length, or batch_size is not positive.
    """
    import grain  # takes seconds to import

    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        raise ValueError(f"arrays have {lengths} rows: expected the same number, 1 or more, in each")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: expected 1 or more")
    order = grain.MapDataset.range(len(next(iter(arrays.values())))).seed(seed).shuffle().repeat().batch(batch_size)
    rows = order.map(lambda chosen: {name: array[chosen] for name, array in arrays.items()})
    return iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=0)))  # from memory: a thread would only cost
