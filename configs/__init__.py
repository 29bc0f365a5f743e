"""Recipes: one file each, holding a `config`."""
