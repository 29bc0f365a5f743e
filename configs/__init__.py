"""Recipes. Each file defines one `config`; `python launch/tpu_train.py configs/NAME.py` trains from it."""
