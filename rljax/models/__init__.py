"""A decoder-only transformer, seen from outside as functions over pure pytrees of parameters."""

from rljax.models.config import TransformerConfig
from rljax.models.model import Cache, Model, create, without_value_head

__all__ = ["Cache", "Model", "TransformerConfig", "create", "without_value_head"]
