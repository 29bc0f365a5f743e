"""Hugging Face folders: models read from them and written to them."""
