"""CPU time and memory of one GRPO step (loss, gradient and AdamW) of the trainer and of google-tunix 0.1.7.

    make .venv-tunix/.ready
    .venv/bin/uv pip install --python .venv-tunix/bin/python tyro matplotlib
    PYTHONPATH=. .venv-tunix/bin/python benchmarks/train_step.py [--turns 5]

Both models are float32 transformers of 4 layers, width 256 and a tied vocabulary of 32 768, on 8 rows of 64 prompt and
256 completion tokens. Tunix runs its Qwen3 and its `grpo` loss in an optimizer step like the step of its trainer. Times
are measured as in `objectives.py`. Memory is XLA's temporaries. Without Tunix, as in `.venv`, only rljax is timed.
"""

import argparse
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rljax import algorithms
from rljax.models import TransformerConfig, initialize, make_mesh
from rljax.objective import Rollouts
from rljax.rollout import SamplingConfig
from rljax.tasks import StringsTask
from rljax.training import Config, MeshConfig, RolloutConfig
from rljax.training.optimizer import init_state
from rljax.training.step.accumulation import State
from rljax.training.step.policy import make_update
from rljax.training.step.scoring import Scorer, make_prepare

V, D, LAYERS, HEADS, KV_HEADS, MLP = 32768, 256, 4, 4, 2, 1024  # 12.3 M parameters
GROUPS, COMPLETIONS, PROMPT, COMPLETION = 2, 4, 64, 256


def random_rows():
    """(tokens [8, 320] without PAD or EOS, advantages [8])."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(4, V, (GROUPS * COMPLETIONS, PROMPT + COMPLETION)).astype(np.int32)
    return tokens, np.tile([1.0, -1.0], GROUPS * COMPLETIONS // 2).astype(np.float32)


def optimizer():
    return optax.adamw(1e-5)


def ours(microbatches):
    """(compiled step, function from a state to the next state, first state) of the trainer."""
    config = Config(
        task=StringsTask(),
        algorithm=algorithms.grpo(),
        model=TransformerConfig(vocab_size=V, width=D, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS,
                                head_dim=D // HEADS, mlp=MLP, tied=True, max_length=PROMPT + COMPLETION),
        rollout=RolloutConfig(prompts=GROUPS, completions=COMPLETIONS, prompt_length=PROMPT,
                              sampling=SamplingConfig(max_new_tokens=COMPLETION), microbatches=microbatches),
    )  # fmt: skip
    model = config.model.build(vocab_size=V, value_head=False, rules=config.sharding)
    scorer = Scorer(model, make_mesh(MeshConfig(1, 1, 1)))
    params = initialize(scorer.model, scorer.mesh, jax.random.key(0))
    tokens, rewards = random_rows()
    tokens = tokens.reshape(GROUPS, COMPLETIONS, -1)
    mask = np.broadcast_to(np.arange(PROMPT + COMPLETION) >= PROMPT, tokens.shape)
    rollouts = Rollouts(
        tokens=jnp.asarray(tokens),
        mask=jnp.asarray(mask),
        rewards=jnp.asarray(rewards.reshape(GROUPS, COMPLETIONS)),
        old_logp=jnp.where(mask, -math.log(V), 0.0),
        segment_ids=jnp.ones(tokens.shape, jnp.int32),
    )
    prepared, _ = make_prepare(config, scorer)(params, params, rollouts, (), config.algorithm)
    state = State(params, init_state(optimizer(), params))
    update = make_update(config, scorer, optimizer())
    step = update.lower(state, None, prepared, config.algorithm).compile()

    def run(state):
        state, _ = step(state, None, prepared, config.algorithm)
        return state

    return step, run, state


def tunix():
    """The values that `ours` returns, for Tunix."""
    from flax import nnx
    from tunix.models.qwen3 import model as qwen3  # pyright: ignore[reportMissingImports]
    from tunix.rl import common, function_registry  # pyright: ignore[reportMissingImports]
    from tunix.rl.grpo import grpo_learner  # pyright: ignore[reportMissingImports]

    config = qwen3.ModelConfig(
        num_layers=LAYERS, embed_dim=D, hidden_dim=MLP, num_heads=HEADS, head_dim=D // HEADS, num_kv_heads=KV_HEADS,
        vocab_size=V, rope_theta=100, norm_eps=1e-6, use_tied_embedding=True,
    )  # fmt: skip
    model = qwen3.Qwen3(config, rngs=nnx.Rngs(0))
    graph, state = nnx.split((model, nnx.Optimizer(model, optimizer(), wrt=nnx.Param)))
    loss = function_registry.get_policy_loss_fn("grpo")
    algorithm = grpo_learner.GRPOConfig(num_generations=COMPLETIONS, num_iterations=2, beta=0.0)
    algorithm.temperature = 1.0
    tokens, advantages = random_rows()
    ones = jnp.ones((len(tokens), COMPLETION), bool)
    example = common.TrainExample(
        prompt_ids=jnp.asarray(tokens[:, :PROMPT]), prompt_mask=jnp.ones((len(tokens), PROMPT), bool),
        completion_ids=jnp.asarray(tokens[:, PROMPT:]), completion_mask=ones, advantages=jnp.asarray(advantages),
        ref_per_token_logps=None, old_per_token_logps=jnp.where(ones, -math.log(V), 0.0),
    )  # fmt: skip

    def update(state, example):
        model, opt = nnx.merge(graph, state)
        _, gradients = nnx.value_and_grad(lambda model: loss(model, example, algorithm, 0, 1), has_aux=True)(model)
        opt.update(model, gradients)
        return nnx.state((model, opt))

    step = jax.jit(update, donate_argnums=0).lower(state, example).compile()
    return step, lambda state: step(state, example), state


def compare(programs, turns):
    seconds = {name: [] for name in programs}
    states = {name: state for name, (_, _, state) in programs.items()}
    for _ in range(turns + 1):  # the first turn warms up
        for name, (_, run, _) in programs.items():
            start = time.process_time()
            states[name] = jax.block_until_ready(run(states[name]))
            seconds[name].append(time.process_time() - start)
    best = {name: min(times[1:]) for name, times in seconds.items()}
    for name, (step, _, _) in programs.items():
        mebibytes = step.memory_analysis().temp_size_in_bytes / 2**20
        ratio = best[name] / best["rljax"]
        print(f"{name}: {best[name]:.2f} CPU s ({ratio:.2f} x rljax), temporaries {mebibytes:.0f} MiB", flush=True)


def main(turns):
    programs: dict[str, Any] = {"rljax": ours(1)} | {f"rljax, {parts} microbatches": ours(parts) for parts in (2, 4)}
    try:
        programs["tunix 0.1.7"] = tunix()
    except ImportError as error:
        print(f"Tunix is not installed and was not timed ({error})")
    compare(programs, turns)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    main(parser.parse_args().turns)
