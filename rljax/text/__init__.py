"""Tokenizers: the interface `TextTokenizer`, SentencePiece models, and the tokenizers of Hugging Face folders."""

from rljax.text.loading import load_tokenizer
from rljax.text.protocol import Message, NoTemplateError, TextTokenizer, fits
from rljax.text.sentencepiece import Tokenizer

__all__ = ["Message", "NoTemplateError", "TextTokenizer", "Tokenizer", "fits", "load_tokenizer"]
