"""Hugging Face folders: models read from them and written to them."""

from rljax.models.huggingface.load import load
from rljax.models.huggingface.pretrained import PretrainedModel
from rljax.models.huggingface.save import save

__all__ = ["PretrainedModel", "load", "save"]
