"""A tokenizer with a chat template for tests."""

from rljax.tasks import Tokenizer


class ChatTokenizer(Tokenizer):
    """A SentencePiece model whose chats are lines `role: content`."""

    def chat(self, messages, *, generate=True):
        text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return self.encode(text + ("assistant: " if generate else ""))


def chat_tokenizer():
    return ChatTokenizer(Tokenizer.train(["user: 1 + 2\nassistant: 3"], vocab_size=300).model_proto)
