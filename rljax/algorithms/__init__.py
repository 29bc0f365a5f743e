"""Published algorithms: functions that return a `PolicyGradient` with the paper's hyper-parameters as defaults.

The derivative of `policy_loss` by a hyper-parameter of the ratio is exact, but 0 if the ratio is under `local_gradient`
(`cispo`, `minpro_cispo`, `vespo`) or the hyper-parameter is a threshold (`dppo`, `cppo`). It is 0 by those of the
advantage (`ppo`), the aggregation (`dr_grpo`) and the carried state (`aepo`), since A and w are constants.

To make another, write another expression; to schedule one, make it from the step:
`lambda step: holder_po(p=holder_schedule(step))`. Each file is a family, with a page in docs/algorithms; its `__all__`
lists the algorithms. Each docstring names the defaults that are ours and what was not verified from the source. KL
penalties, sampling rules and reward shaping of a paper are not part of its algorithm here: see `penalty`, `rewards`.

Symbols in the docstrings: R is a completion's reward and R_t a token's, G_t the reward-to-go, Z = (R − mean R)/(std R
+ 1e-6) over the group of G; n the trained tokens of a sequence, N and M the sequences and the trained tokens of the
optimizer step; r = e^ℓ, and clip_A(r) = min(r, 1 + high) where A ≥ 0, max(r, 1 − low) where A < 0.
"""

from rljax.algorithms import critics, entropy, groups, prefixes, regions, reinforce, sequences, token_baselines
from rljax.algorithms.critics import *  # noqa: F403
from rljax.algorithms.entropy import *  # noqa: F403
from rljax.algorithms.groups import *  # noqa: F403
from rljax.algorithms.prefixes import *  # noqa: F403
from rljax.algorithms.regions import *  # noqa: F403
from rljax.algorithms.reinforce import *  # noqa: F403
from rljax.algorithms.sequences import *  # noqa: F403
from rljax.algorithms.sequences import holder_schedule as holder_schedule
from rljax.algorithms.token_baselines import *  # noqa: F403

__all__: list[str] = []
__all__ += critics.__all__
__all__ += entropy.__all__
__all__ += groups.__all__
__all__ += prefixes.__all__
__all__ += regions.__all__
__all__ += reinforce.__all__
__all__ += sequences.__all__
__all__ += token_baselines.__all__
