"""Lion (2302.06675) on the string task, an example of a recipe with an optax optimizer.

A Lion update has the same size in every coordinate, so the learning rate is lower than for AdamW.
"""

import dataclasses
from pathlib import Path

import optax
from rljax.configs import strings

optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.lion(optax.warmup_constant_schedule(0.0, 3e-5, warmup_steps=10), weight_decay=0.0),
)
config = dataclasses.replace(strings.config, run=Path("runs/lion"), optimizer=optimizer)
