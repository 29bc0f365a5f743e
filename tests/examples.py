"""An instance of each algorithm with its paper's formula, and hyper-parameters for functions without defaults.

To add an algorithm, add one entry to ALGORITHMS; the tests of laws, extremes, packing, the trainer and papers cover it.
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from rljax import algorithms, ratio
from tests import papers
from tests.papers import chain, clip, local_gradient


class Example(NamedTuple):
    paper: tuple
    """(A, w, f) of tests/papers.py, for `make(name)`."""
    bounded: tuple[bool, bool]
    """Whether e^f has an upper bound if A > 0, and if A < 0."""
    hyper: Mapping[str, Any] = MappingProxyType({})
    """Hyper-parameters that have no default."""
    batch_wide: bool = False
    """Whether an advantage depends on other groups."""


BOTH, POSITIVE, NEITHER = (True, True), (True, False), (False, False)
OF_GROUPS, ALIKE, BY_SEQUENCE = papers.group_relative, papers.token_mean, papers.sequence_mean_weights
PPO_CLIP = clip(0.2, 0.2)

ALGORITHMS = {
    # critics
    "ppo": Example((papers.whitened_estimation, ALIKE, PPO_CLIP), POSITIVE, batch_wide=True),
    # entropy
    "aepo": Example(
        (papers.without_negatives(papers.task_relative), ALIKE, clip(0.2, 0.28)),
        POSITIVE,
        {"entropy_low": 0.5, "entropy_high": 1.0},
        batch_wide=True,
    ),
    # groups
    "grpo": Example((OF_GROUPS, BY_SEQUENCE, PPO_CLIP), POSITIVE),
    "dr_grpo": Example((papers.mean_baseline, papers.constant(8), PPO_CLIP), POSITIVE, {"max_length": 8}),
    "dapo": Example((OF_GROUPS, ALIKE, clip(0.2, 0.28)), POSITIVE),
    "balanced_grpo": Example((OF_GROUPS, papers.balanced, PPO_CLIP), POSITIVE),
    "max_rl": Example((papers.max_rl, ALIKE, PPO_CLIP), POSITIVE),
    # prefixes
    "ctpo": Example(
        (OF_GROUPS, ALIKE, chain(local_gradient(papers.cumulative), papers.position_clip(0.025, 0.05, 0.05))), BOTH
    ),
    "minpro": Example((OF_GROUPS, ALIKE, chain(papers.prefix_min, clip(0.2, 0.28))), POSITIVE),
    "minpro_cispo": Example(
        (OF_GROUPS, ALIKE, local_gradient(chain(papers.prefix_min, papers.two_sided_clip(None, 0.28)))), BOTH
    ),
    # regions (papers.py has old_logp = 0 and D = 0.1)
    "cispo": Example((OF_GROUPS, ALIKE, local_gradient(papers.two_sided_clip(None, 0.28))), BOTH),
    "sapo": Example((OF_GROUPS, BY_SEQUENCE, papers.soft_gate(1.0, 1.05)), BOTH),
    "dppo": Example((OF_GROUPS, ALIKE, papers.total_variation_mask(0.15, 0.15, 1.0)), BOTH),
    "cppo": Example((OF_GROUPS, ALIKE, papers.cumulative_divergence_mask(0.15, 0.02, 0.1)), NEITHER),
    "topr": Example(
        (papers.mean_baseline, papers.constant(1), local_gradient(chain(papers.sequence_mean, papers.taper))), BOTH
    ),
    "vespo": Example(
        (OF_GROUPS, ALIKE, local_gradient(chain(papers.clamp(20), papers.sequence_sum, papers.gamma_gate()))), BOTH
    ),
    # reinforce
    "rloo": Example(
        (papers.leave_one_out, papers.constant(1), chain(local_gradient(papers.sequence_sum), PPO_CLIP)), POSITIVE
    ),
    "reinforce_plus_plus": Example((papers.reinforce_plus_plus, ALIKE, PPO_CLIP), POSITIVE, batch_wide=True),
    "opo": Example((papers.length_weighted, ALIKE, papers.token), NEITHER),
    "remax": Example((papers.remax, papers.constant(1), papers.token), NEITHER),
    # sequences
    "gspo": Example((OF_GROUPS, BY_SEQUENCE, chain(papers.sequence_mean, clip(3e-4, 4e-4))), POSITIVE),
    "gspo_token": Example(
        (OF_GROUPS, BY_SEQUENCE, chain(local_gradient(papers.sequence_mean), clip(3e-4, 4e-4))), POSITIVE
    ),
    "gmpo": Example((OF_GROUPS, BY_SEQUENCE, chain(papers.log_clip(0.4, 0.4), papers.sequence_mean)), POSITIVE),
    "holder_po": Example((OF_GROUPS, BY_SEQUENCE, chain(papers.power_mean(2.0), PPO_CLIP)), POSITIVE),
    "holder_po_token_clip": Example((OF_GROUPS, BY_SEQUENCE, chain(PPO_CLIP, papers.power_mean(2.0))), POSITIVE),
    "holder_po_two_sided": Example(
        (OF_GROUPS, BY_SEQUENCE, chain(papers.clamp(np.log(1.2)), papers.power_mean(2.0), PPO_CLIP)), BOTH
    ),
    "luspo": Example((OF_GROUPS, papers.constant(1), chain(papers.sequence_mean, clip(2e-3, 2.5e-3))), POSITIVE),
    # token baselines
    "otb": Example((papers.optimal_token_baseline, ALIKE, PPO_CLIP), POSITIVE),
}

# Ratios and aggregations.
HYPER = {
    "power_mean": {"p": 1.5},
    "clip": {"low": 0.2, "high": 0.3, "dual": 1.4},
    "log_clip": {"log_low": 0.3, "log_high": 0.3},
    "position_clip": {"log_low": 0.1, "log_high": 0.2, "log_dual": 0.3},
    "two_sided_clip": {"low": 0.2, "high": 0.3},
    "clamp": {"limit": 0.3},
    "total_variation_mask": {"low": 0.02, "high": 0.02},
    "kl_mask": {"low": 0.01, "high": 0.01},
    "cumulative_divergence_mask": {"limit": 0.15, "slack": 0.02},
    "constant": {"max_length": 12},
}
LOCAL_ONLY = (
    "sequence_sum",
    "cumulative",
    "prefix_mean",
    "gamma_gate",
    "taper",
)  # used only under local_gradient


def make(name: str, **hyper):
    return getattr(algorithms, name)(**ALGORITHMS[name].hyper, **hyper)


def bound(module, name: str):
    function = partial(getattr(module, name), **HYPER.get(name, {}))
    return ratio.local_gradient(function) if name in LOCAL_ONLY else function
