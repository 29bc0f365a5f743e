"""The string task under Lion (2302.06675) in place of AdamW: a recipe takes any optimizer of Optax. About 7 minutes.

A step of Lion has the same size in every coordinate, so its learning rate is a fraction of AdamW's. Schedule and clip
are Optax's too, composed in the order in which they apply.
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
