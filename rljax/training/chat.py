"""A conversation with a model in the terminal."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import jax

from rljax._checks import check
from rljax.models import Model, Params
from rljax.rollout import SamplingConfig, stream
from rljax.text import Message, NoTemplateError, TextTokenizer, fits, load_tokenizer
from rljax.training.checkpoint.folder import read_json
from rljax.training.export import load_run
from rljax.training.terminal import escaped


class Speaker(NamedTuple):
    """A model with its tokenizer and the settings that its answers are drawn with."""

    model: Model
    params: Params
    tokenizer: TextTokenizer
    sampling: SamplingConfig

    def answer(self, prompt: Sequence[int], key: jax.Array) -> Iterator[str]:
        """Yields the text of one completion in pieces of whole characters."""
        banned = tuple(range(self.tokenizer.vocab_size, self.model.vocab_size))
        stop_ids = self.tokenizer.stop_ids
        largest = max(prompt, default=0)
        check(largest < self.model.vocab_size, "prompt", largest, f"token ids below {self.model.vocab_size}")
        drawn = stream(self.model, self.params, prompt, key, self.sampling, stop_ids=stop_ids, banned=banned)
        return pieces((i for i in drawn if i not in stop_ids), self.tokenizer.decode)


def load_speaker(
    path: Path, sampling: SamplingConfig, *, ignore: Sequence[str] = (), overrides: Sequence[str] = ()
) -> Speaker:
    """The model of a Hugging Face folder, or of a run's newest checkpoint.

    `ignore` is as in `rljax.models.load`. `overrides` are command-line options of the run's recipe, as in `load_run`.
    """
    config = path / "config.json"
    if config.is_file() and "recipe" in read_json(config, {}):
        ignored = ["--model.ignore", *ignore] if ignore else []
        return Speaker(*load_run(path, [*overrides, *ignored]), sampling)
    check(not overrides, "arguments", list(overrides), f"options of rljax-chat only, since {path} is not a run")
    from rljax.models import load  # needs the extra `hf`

    model, params = load(path, ignore=ignore)
    tokenizer = load_tokenizer(path)
    check(fits(tokenizer, model.vocab_size), "tokenizer.vocab_size", tokenizer.vocab_size,
          f"at most {model.vocab_size}, the vocabulary size of the model")  # fmt: skip
    return Speaker(model, params, tokenizer, sampling)


def converse(speaker: Speaker, key: jax.Array, read: Callable[[], str], out: TextIO, system: str | None = None) -> None:
    """Answers the lines that `read` returns until it raises EOFError (Ctrl-D); an interrupt (Ctrl-C) ends an answer.

    With a chat template, a prompt is the whole conversation, after the message `system` if there is one; without one, a
    line is completed on its own. If the conversation leaves no room for an answer, a new one starts.

    Args:
      speaker: What answers.
      key: Random key of the conversation.
      read: Returns the next line that the user typed.
      out: Where the answers are written.
      system: Text of the system message; none if it is None or empty.

    Raises:
      ValueError: If the chat template fails, or if `system` is given but the tokenizer has no chat template.
    """
    opening = [{"role": "system", "content": system}] if system else []
    messages: list[Message] = list(opening)
    for turn, line in enumerate(lines(read, out)):
        asked = [*messages, {"role": "user", "content": line}]
        prompt = prompt_of(asked, speaker.tokenizer)
        if len(prompt) >= speaker.model.max_length:
            out.write(
                f"[The conversation has {len(prompt)} tokens, and the model reads at most {speaker.model.max_length}. "
                "A new conversation starts; your last message was left out.]\n\n"
            )
            messages = list(opening)
            continue
        text = say(speaker.answer(prompt, jax.random.fold_in(key, turn)), out)
        messages = [*asked, {"role": "assistant", "content": text}]


def lines(read: Callable[[], str], out: TextIO) -> Iterator[str]:
    """The lines that are not blank, until the end of the input; an interrupt between answers is ignored."""
    while True:
        try:
            line = read()
        except EOFError:
            return
        except KeyboardInterrupt:
            out.write("\n[Ctrl-D ends the conversation.]\n")
            continue
        if line.strip():
            yield line


def prompt_of(messages: Sequence[Message], tokenizer: TextTokenizer) -> list[int]:
    """Token ids of the conversation; of the last message alone if the tokenizer has no chat template.

    Raises NoTemplateError if there is a system message, which then has no place.
    """
    try:
        return tokenizer.chat(messages)
    except NoTemplateError:
        if messages[0]["role"] == "system":
            raise
        return [*tokenizer.begin_ids, *tokenizer.encode(messages[-1]["content"])]


def say(answer: Iterator[str], out: TextIO) -> str:
    """Writes an answer piece by piece, until an interrupt; returns the text that was written, unescaped."""
    text = ""
    try:
        for piece in answer:
            text += piece
            out.write(escaped(piece))
            out.flush()
    except KeyboardInterrupt:
        out.write(" [stopped]")
    out.write("\n\n")
    out.flush()
    return text


def pieces(ids: Iterator[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """The text of `ids` as it becomes known: a character is yielded when all its bytes are there."""
    known, text, shown = [], "", ""
    for i in ids:
        known.append(i)
        text = decode(known)
        whole = text.rstrip("\ufffd")  # perhaps the first bytes of a character
        if len(whole) > len(shown) and whole.startswith(shown):
            yield whole[len(shown) :]
            shown = whole
    if text.startswith(shown) and text != shown:
        yield text[len(shown) :]
