"""d3rlpy: its algorithms' own update on batches of its own buffer, as its ``fit`` calls them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from torch import Tensor

from bench.perf.protocol import Program, Unavailable, serve
from bench.perf.work import Work, arrays, check_device, program

BATCH, LR = 256, 3e-4


def config(algorithm: str) -> Any:
    """The recipe's hyper-parameters where d3rlpy's defaults differ.

    Raises:
        Unavailable: d3rlpy has no such algorithm.
    """
    from d3rlpy import algos, models, optimizers  # type: ignore[import-not-found]

    deep = models.VectorEncoderFactory([256, 256, 256])
    small_clipped = optimizers.GPTAdamWFactory(
        weight_decay=1e-4,
        clip_grad_norm=0.25,
        lr_scheduler_factory=optimizers.WarmupSchedulerFactory(10_000),
    )
    configs = {
        "bc": lambda: algos.BCConfig(batch_size=BATCH, learning_rate=LR),
        "sac": lambda: algos.SACConfig(batch_size=BATCH),
        "td3_bc": lambda: algos.TD3PlusBCConfig(batch_size=BATCH),
        "iql": lambda: algos.IQLConfig(batch_size=BATCH),
        "cql": lambda: algos.CQLConfig(
            batch_size=BATCH,
            actor_learning_rate=3e-5,
            temp_learning_rate=3e-5,
            alpha_learning_rate=0.0,  # no Lagrange multiplier
            conservative_weight=10.0,
            actor_encoder_factory=deep,
            critic_encoder_factory=deep,
        ),
        "dt": lambda: algos.DecisionTransformerConfig(
            batch_size=64,
            context_size=20,
            max_timestep=1000,
            encoder_factory=models.VectorEncoderFactory([128], exclude_last_activation=True),
            optim_factory=small_clipped,
        ),
    }
    if algorithm not in configs:
        raise Unavailable(f"d3rlpy has no counterpart of {algorithm} here")
    return configs[algorithm]()


def dataset(work: Work) -> Any:
    """Its observations follow one another: the next one is the next row's."""
    from d3rlpy.dataset import MDPDataset  # type: ignore[import-not-found]

    found = {k: v.numpy() for k, v in arrays(work).items()}
    last = found["last"].squeeze(1).astype(np.float32)
    return MDPDataset(
        observations=found["observation"],
        actions=found["action"],
        rewards=found["reward"],
        terminals=np.zeros_like(last),
        timeouts=last,
    )


def build(request: dict[str, Any]) -> Program:
    work = Work(**request)
    work.only_one_seed()
    check_device(work.device)
    chosen, buffer = config(work.algorithm), dataset(work)
    algorithm = chosen.create(device=work.device)
    algorithm.build_with_dataset(buffer)
    sequence = work.algorithm == "dt"

    def step() -> None:
        if sequence:
            batch = buffer.sample_trajectory_batch(chosen.batch_size, length=chosen.context_size)
        else:
            batch = buffer.sample_transition_batch(chosen.batch_size)
        algorithm.update(batch)

    def weights() -> list[Tensor]:
        modules = vars(algorithm.impl.modules).values()
        optimizers = [m.optim for m in modules if hasattr(m, "optim")]
        return [p for o in optimizers for group in o.param_groups for p in group["params"]]

    return program(work, step, weights, ("d3rlpy",))


if __name__ == "__main__":
    sys.exit(serve(build))
