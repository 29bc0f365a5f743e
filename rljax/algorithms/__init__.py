"""The algorithms of the field: each an advantage, an aggregation and a ratio, with its paper's hyper-parameters.

To make another, write another expression; to schedule one, make it from the step:
`lambda step: holder_po(p=holder_schedule(step))`.

In what each says of itself: R is a completion's reward and R_t a token's, G_t the reward-to-go, Z = (R − mean R)/(std R
+ 1e-6) over the group of G; n a sequence's trained tokens, N the step's sequences, M its tokens; r = e^ℓ, and
clip_A(r) = min(r, 1 + high) where A ≥ 0, max(r, 1 − low) where A < 0.
"""

from rljax.algorithms.baselines import opo, otb, ppo, reinforce_plus_plus, remax, rloo
from rljax.algorithms.gates import cispo, cppo, dppo, sapo
from rljax.algorithms.groups import aepo, balanced_grpo, dapo, dr_grpo, grpo
from rljax.algorithms.prefixes import ctpo, minpro
from rljax.algorithms.sequences import (
    gmpo,
    gspo,
    gspo_token,
    holder_po,
    holder_po_token_clip,
    holder_po_two_sided,
)
from rljax.algorithms.sequences import holder_schedule as holder_schedule

__all__ = [
    "aepo",
    "balanced_grpo",
    "cispo",
    "cppo",
    "ctpo",
    "dapo",
    "dppo",
    "dr_grpo",
    "gmpo",
    "grpo",
    "gspo",
    "gspo_token",
    "holder_po",
    "holder_po_token_clip",
    "holder_po_two_sided",
    "minpro",
    "opo",
    "otb",
    "ppo",
    "reinforce_plus_plus",
    "remax",
    "rloo",
    "sapo",
]
