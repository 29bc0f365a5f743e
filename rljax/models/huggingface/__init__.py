"""Hugging Face folders: models read from them and written to them."""

from rljax.models.huggingface.load import load

__all__ = ["load"]
