"""Published algorithms: functions that return a `PolicyGradient`, with the paper's hyper-parameters as defaults.

Symbols in the docstrings: A, w, f and ℓ are as in `rljax.objective`. R is the reward of a completion, R_t the reward of
a token and G_t the reward-to-go. Z = (R − mean R)/(std R + 1e-6) is the reward standardized over a group of G
completions. n is the number of trained tokens of a sequence, N the number of sequences and M the number of trained
tokens in the optimizer step. r = e^ℓ is the ratio of a token, and clip_A(r) is min(r, 1 + high) if A ≥ 0 and max(r, 1 −
low) if A < 0. sg stops the gradient, σ is the logistic function, and whiten subtracts the mean over the batch's tokens
and divides by their standard deviation.

Each docstring names our own defaults and what was not checked against the paper. KL penalties, sampling rules and
reward shaping are not included: see `penalty` and `rewards`. A hyper-parameter out of range raises ValueError.

To define another algorithm, build a `PolicyGradient`. To schedule a hyper-parameter, use a function of the step:
`lambda step: holder_po(p=holder_schedule(step))`. Each file is one family, with a page in docs/algorithms.

`policy_loss` has an exact derivative with respect to the hyper-parameters of a ratio, which is 0 under `local_gradient`
(`cispo`, `minpro_cispo`, `vespo`) and for the bounds of `dppo` and `cppo`. Hyper-parameters of the advantage (`ppo`),
the aggregation (`dr_grpo`) and the carried state (`aepo`) have derivative 0, since A and w are constants.
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
