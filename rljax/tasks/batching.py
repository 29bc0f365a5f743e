"""Encoding of problems as rows of token ids, and a grain iterator over batches of rows.

Rows are a dict of NumPy arrays [R, T]: `tokens` int32, `segment_ids` int32 (0 on padding; 1, 2, … for the sequences of
a row) and, for demonstrations only, `mask` bool, which is True on a solution and its end token.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from rljax.tasks.task import Problem
from rljax.text import TextTokenizer

Rows = dict[str, Int[np.ndarray, "R T"] | Bool[np.ndarray, "R T"]]


def pack(
    problems: Sequence[Problem],
    tokenizer: TextTokenizer,
    row_length: int,
    *,
    stop_ids: Sequence[int] = (),
    leave_out_long: bool = False,
) -> Rows:
    """Packs demonstrations `[prompt | solution | end]` into rows of `row_length` tokens by best fit.

    Args:
      problems: Problems with solutions.
      tokenizer: Encodes the prompts and the solutions.
      row_length: Tokens per row.
      stop_ids: Tokens that end a completion, by default the tokenizer's (`end_id`).
      leave_out_long: Leave out demonstrations that are longer than a row.

    Returns:
      Rows with `tokens`, `segment_ids` and `mask`. The largest segment id of a row is its number of demonstrations.

    Raises:
      ValueError: If there are no problems, if a problem has no solution, or if a demonstration (with `leave_out_long`,
        every demonstration) is longer than a row.
    """
    if not problems:
        raise ValueError("problems is empty: expected at least one problem to pack")
    room: list[list[int]] = [[] for _ in range(row_length + 1)]  # indices of rows, by the number of free tokens
    rows: list[list[tuple[list[int], int]]] = []
    encoded = [_demonstration(problem, tokenizer, stop_ids or tokenizer.stop_ids) for problem in problems]
    lengths = [len(tokens) for tokens, _ in encoded]
    if max(lengths) > row_length and (not leave_out_long or min(lengths) > row_length):
        longest = lengths.index(max(lengths))
        raise ValueError(f"row_length = {row_length}: expected room for {problems[longest].prompt!r} with its "
                         f"solution, {lengths[longest]} tokens (the shortest demonstration has {min(lengths)}); raise "
                         "row_length or remove the problem")  # fmt: skip
    for tokens, start in encoded:
        if len(tokens) > row_length:
            continue
        left = next((k for k in range(len(tokens), row_length + 1) if room[k]), None)
        if left is None:
            left = row_length
            room[left].append(len(rows))
            rows.append([])
        row = room[left].pop()
        rows[row].append((tokens, start))
        room[left - len(tokens)].append(row)
    return _filled(rows, row_length)


def _demonstration(problem: Problem, tokenizer: TextTokenizer, stop_ids: Sequence[int]) -> tuple[list[int], int]:
    """(tokens, index of the first token of the solution)."""
    if not problem.solution:
        raise ValueError(f"problems: {problem.prompt!r} has no solution: expected a solution in every problem")
    prompt = prompt_ids(problem, tokenizer)
    return [*prompt, *tokenizer.encode(problem.solution), end_id(problem, tokenizer, stop_ids)], len(prompt)


def end_id(problem: Problem, tokenizer: TextTokenizer, stop_ids: Sequence[int]) -> int:
    """The token that ends a demonstration: the first stop token, or, after a chat, the last that its template writes.

    Llama 3's first stop token is `<|end_of_text|>`, but its chat template ends a message with `<|eot_id|>`.
    """
    if problem.messages:
        answered = [*problem.messages, {"role": "assistant", "content": problem.solution}]
        stops = [i for i in tokenizer.chat(answered, generate=False) if i in stop_ids]
        return stops[-1] if stops else stop_ids[0]
    return stop_ids[0]


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


def left_padded(prompts: Sequence[Sequence[int]], length: int) -> Rows:
    """One prompt of at most `length` token ids per row, padded on the left."""
    tokens, segment_ids = np.zeros((2, len(prompts), length), np.int32)
    for r, ids in enumerate(prompts):
        tokens[r, length - len(ids) :] = ids
        segment_ids[r, length - len(ids) :] = 1
    return {"tokens": tokens, "segment_ids": segment_ids}


def prompt_ids(problem: Problem, tokenizer: TextTokenizer) -> list[int]:
    """Token ids of a prompt: of the chat `problem.messages` if there are messages, else of the text `problem.prompt`.

    A text begins with the tokenizer's `begin_ids`. Raises ValueError if there are no tokens, or if the tokenizer cannot
    write the chat; the message names the problem.
    """
    if not problem.messages:
        ids = [*tokenizer.begin_ids, *tokenizer.encode(problem.prompt)]
    else:
        try:
            ids = tokenizer.chat(problem.messages)
        except ValueError as error:
            raise ValueError(f"problems: the chat of {problem.prompt!r}: {error}") from error
    if not ids:
        raise ValueError("problems: a prompt is empty: expected at least one token, to predict the next token from")
    return ids


def batches(arrays: dict[str, np.ndarray], batch_size: int, seed: int):
    """Infinite grain iterator over batches of rows of `arrays`, shuffled anew in each epoch.

    Its state (`get_state`, `set_state`) is JSON-like data. Raises ValueError if there are no rows, if the arrays differ
    in length, or if batch_size is not positive.
    """
    import grain

    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        raise ValueError(f"arrays have {lengths} rows: expected the same number, 1 or more, in each")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: expected 1 or more")
    order = grain.MapDataset.range(len(next(iter(arrays.values())))).seed(seed).shuffle().repeat().batch(batch_size)
    rows = order.map(lambda chosen: {name: array[chosen] for name, array in arrays.items()})
    return iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=0)))  # rows are in memory: no threads needed
