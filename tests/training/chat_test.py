import io
import json
import random
import shutil

import jax
import pytest
from tokenizers import Tokenizer, decoders, models

from rljax.rollout import SamplingConfig
from rljax.tasks import Tokenizer as SentencePiece
from rljax.text import load_tokenizer
from rljax.training import chat, commands
from rljax.training.chat import Speaker, converse, pieces, say
from rljax.training.terminal import escaped
from tests.training.pretrained import make_folder, write_tokenizer

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("model")
    make_folder(made)
    return made


@pytest.fixture(scope="module")
def speaker(folder):
    return chat.load_speaker(folder, SamplingConfig(max_new_tokens=6, temperature=0.0))


def reader(*typed):
    """Returns the lines one by one, raises those that are exceptions, then EOFError."""
    left = iter([*typed, EOFError])

    def read() -> str:
        line = next(left)
        if isinstance(line, str):
            return line
        raise line

    return read


class Echo(Speaker):
    """Answers with the prompt that it receives, in brackets."""

    def answer(self, prompt, key):
        yield f"[{self.tokenizer.decode(prompt).strip()}]"


class TestPieces:
    TEXT = "é💡 東京 a\u0301 👩‍🚀\ufffd!"

    def test_no_part_of_a_character_is_shown(self, tmp_path):
        write_tokenizer(tmp_path)
        tokenizer = load_tokenizer(tmp_path)
        shown = list(pieces(iter(tokenizer.encode(self.TEXT)), tokenizer.decode))
        assert "".join(shown) == self.TEXT
        assert shown[:3] == ["é", "💡", " "]
        assert len(shown) == len(self.TEXT) - 1  # the replacement character comes with the next one

    def test_what_stays_incomplete_is_shown_at_the_end(self, tmp_path):
        write_tokenizer(tmp_path)
        tokenizer = load_tokenizer(tmp_path)
        shown = list(pieces(iter([*tokenizer.encode("a"), *tokenizer.encode("💡")[:2]]), tokenizer.decode))
        assert shown == ["a", "\ufffd"]

    def test_byte_fallback(self):
        """Its decoder replaces all bytes of a run as long as the last character is incomplete."""
        byte = Tokenizer(models.BPE({f"<0x{i:02X}>": i for i in range(256)}, [], byte_fallback=True))
        byte.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        for seed in range(20):
            text = "".join(random.Random(seed).choices("aé東💡", k=9))
            shown = list(pieces(iter(text.encode()), lambda ids: byte.decode(list(ids))))
            assert "".join(shown) == text
            assert "\ufffd" not in "".join(shown)


def test_control_characters_are_escaped():
    assert escaped("\x1b]0;x\x07\x9b2J\r\u202e\ue000\u2028") == r"\x1b]0;x\x07\x9b2J\r\u202e\ue000\u2028"
    assert escaped("a\n\tb é 東 👩\u200d🚀") == "a\n\tb é 東 👩\u200d🚀"


class TestConversation:
    def test_the_prompt_is_the_whole_conversation(self, speaker):
        out = io.StringIO()
        converse(Echo(*speaker), KEY, reader("hi", " ", "ok"), out, system="S")
        first = "system\nS\nuser\nhi\nassistant"
        assert out.getvalue() == f"[{first}]\n\n[{first}\n[{first}]\nuser\nok\nassistant]\n\n"

    def test_without_a_chat_template_a_line_is_completed(self, speaker):
        out = io.StringIO()
        plain = Echo(*speaker._replace(tokenizer=SentencePiece.train(["hi ok"], vocab_size=300)))
        converse(plain, KEY, reader("hi", "ok"), out)
        assert out.getvalue() == "[hi]\n\n[ok]\n\n"
        with pytest.raises(ValueError, match="expected a tokenizer with a chat template"):
            converse(plain, KEY, reader("hi"), out, system="S")

    def test_a_conversation_that_is_too_long_starts_anew(self, speaker):
        out = io.StringIO()
        converse(Echo(*speaker), KEY, reader("x" * 40, "y" * 40, "z"), out)
        assert "tokens, and the model reads at most 128. A new conversation starts" in out.getvalue()
        assert out.getvalue().endswith("[user\nz\nassistant]\n\n")

    def test_interrupts(self, speaker):
        def broken():
            yield "ab\x07"
            raise KeyboardInterrupt

        out = io.StringIO()
        assert say(broken(), out) == "ab\x07"
        assert out.getvalue() == "ab\\x07 [stopped]\n\n"
        out = io.StringIO()
        converse(Echo(*speaker), KEY, reader(KeyboardInterrupt, "hi"), out)
        assert out.getvalue() == "\n[Ctrl-D ends the conversation.]\n[user\nhi\nassistant]\n\n"

    def test_the_answer_is_that_of_the_model(self, speaker):
        prompt = speaker.tokenizer.chat([{"role": "user", "content": "hi"}])
        params, model, tokens = speaker.params, speaker.model, list(prompt)
        for _ in range(6):
            hidden = model.hidden(params, jax.numpy.int32([tokens]), jax.numpy.ones((1, len(tokens)), int))
            logits = (hidden[0, -1] @ model.unembedding(params).T)[: speaker.tokenizer.vocab_size]
            tokens.append(int(logits.argmax()))
        new = tokens[len(prompt) :]
        stops = [n for n, i in enumerate(new) if i in speaker.tokenizer.stop_ids]
        expected = speaker.tokenizer.decode(new[: stops[0]] if stops else new)
        assert "".join(speaker.answer(prompt, KEY)) == expected != ""


class TestCommand:
    def run(self, monkeypatch, *arguments, typed="hi\n"):
        stdin = io.TextIOWrapper(io.BytesIO(typed.encode("latin-1")), encoding="utf-8")
        monkeypatch.setattr("sys.stdin", stdin)
        commands.chat([str(x) for x in arguments])

    def test_a_folder(self, folder, speaker, monkeypatch, capsys):
        self.run(monkeypatch, folder, "--temperature", 0, "--max-new-tokens", 6, typed="hi\n\nx\xff\n")
        expected = "".join(speaker.answer(speaker.tokenizer.chat([{"role": "user", "content": "hi"}]), KEY))
        printed = capsys.readouterr().out
        assert printed.startswith(escaped(expected) + "\n\n")
        assert printed.count("\n\n") >= 2

    def test_the_seed_chooses_the_answer(self, folder, monkeypatch, capsys):
        printed = []
        for seed in (0, 0, 1):
            self.run(monkeypatch, folder, "--temperature", 1, "--max-new-tokens", 6, "--seed", seed)
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1] != printed[2]

    def test_a_run(self, tmp_path, speaker, monkeypatch, capsys):
        (tmp_path / "config.json").write_text(json.dumps({"recipe": "x", "overrides": []}))
        calls = []
        monkeypatch.setattr(chat, "load_run", lambda *arguments: calls.append(arguments) or speaker[:3])
        self.run(monkeypatch, tmp_path, "--temperature", 0, "--max-new-tokens", 6, "--model.folder", "moved",
                 "--model.ignore", "one", "two")  # fmt: skip
        assert calls == [(tmp_path, ["--model.folder", "moved", "--model.ignore", "one", "two"])]
        expected = "".join(speaker.answer(speaker.tokenizer.chat([{"role": "user", "content": "hi"}]), KEY))
        assert capsys.readouterr().out == escaped(expected) + "\n\n"

    @pytest.mark.parametrize(("arguments", "fault"), [
        (["absent"], "hf download ORG/NAME --local-dir"), (["absent", "--temperature", "-1"], "temperature = -1.0"),
        (["absent", "--seeds", "1"], "arguments = ['--seeds', '1']: expected options of rljax-chat"),
    ])  # fmt: skip
    def test_errors_have_one_line(self, tmp_path, monkeypatch, capsys, arguments, fault):
        with pytest.raises(SystemExit):
            self.run(monkeypatch, tmp_path / arguments[0], *arguments[1:])
        printed = capsys.readouterr().err
        assert fault in printed
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1

    def test_the_option_in_the_error_of_an_unknown_key(self, folder, tmp_path, monkeypatch, capsys):
        model = shutil.copytree(folder, tmp_path / "model")
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"novelty": 1, "another": 2}))
        with pytest.raises(SystemExit):
            self.run(monkeypatch, model)
        assert "add `--model.ignore novelty`" in capsys.readouterr().err
        self.run(monkeypatch, model, "--max-new-tokens", 1, "--model.ignore", "novelty", "another")
        assert capsys.readouterr().out.endswith("\n\n")

    def test_an_error_of_a_template_cannot_steer_the_terminal(self, folder, tmp_path, monkeypatch, capsys):
        model = shutil.copytree(folder, tmp_path / "model")
        (model / "chat_template.jinja").write_text("{{ raise_exception('\x1b]0;x\x07') }}")
        with pytest.raises(SystemExit):
            self.run(monkeypatch, model)
        assert r"\x1b]0;x\x07" in (printed := capsys.readouterr().err)
        assert "\x1b" not in printed
