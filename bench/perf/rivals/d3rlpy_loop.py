"""d3rlpy: its algorithms' own update on batches of its own buffer, as its ``fit`` calls them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from bench.perf.protocol import Program, Unavailable, serve
from bench.perf.work import Work, arrays, check_device, program

WIDE = (256, 256, 256)
Options = dict[str, Any]


def rates(actor: float, critic: float = 3e-4) -> Options:
    return {"actor_learning_rate": actor, "critic_learning_rate": critic}


def encoder(*hidden: int, **more: bool) -> Any:
    from d3rlpy.models import VectorEncoderFactory  # type: ignore[import-not-found]

    return VectorEncoderFactory(list(hidden), **more)


def nets(*hidden: int, norm: bool = False) -> Options:
    """``norm``: the critics' layers end in a LayerNorm."""
    return {
        "actor_encoder_factory": encoder(*hidden),
        "critic_encoder_factory": encoder(*hidden, use_layer_norm=norm),
    }


def one(lr: float, *hidden: int) -> Options:
    """Of an algorithm with a single network."""
    return {"learning_rate": lr, "encoder_factory": encoder(*hidden)}


def penalised() -> Options:
    return {"alpha_learning_rate": 0.0, **nets(*WIDE)}  # no Lagrange multiplier


def small_and_clipped() -> Options:
    from d3rlpy import optimizers  # type: ignore[import-not-found]

    warmup = optimizers.WarmupSchedulerFactory(10_000)
    adam = {"weight_decay": 1e-4, "clip_grad_norm": 0.25, "lr_scheduler_factory": warmup}
    return {
        "context_size": 20,
        "max_timestep": 1000,
        "encoder_factory": encoder(128, exclude_last_activation=True),
        "optim_factory": optimizers.GPTAdamWFactory(**adam),
    }


# the recipes' hyper-parameters where d3rlpy's defaults differ; where actions are numbered, its
# target network is a copy made now and then
CONFIGS: dict[str, tuple[str, Callable[[], Options]]] = {
    "bc": ("BC", lambda: {"learning_rate": 3e-4}),
    "bc10": ("BC", lambda: {"learning_rate": 3e-4}),  # of other rows
    "td3": ("TD3", dict),
    "td3_bc": ("TD3PlusBC", dict),
    "rebrac": ("ReBRAC", lambda: {**rates(3e-4), **nets(*WIDE, norm=True)}),
    "ddpg": ("DDPG", lambda: {"tau": 1e-3, **rates(1e-4, 1e-3), **nets(400, 300)}),
    "iql": ("IQL", dict),
    "awac": ("AWAC", lambda: {"lam": 0.3333, **nets(*WIDE)}),
    "sac": ("SAC", dict),
    "sac_n": ("SAC", lambda: {"n_critics": 10, **nets(*WIDE)}),
    "cql": (
        "CQL",
        lambda: {
            "conservative_weight": 10.0,
            "temp_learning_rate": 3e-5,
            **rates(3e-5),
            **penalised(),
        },
    ),
    "cal_ql": ("CalQL", lambda: {"max_q_backup": True, **rates(1e-4), **penalised()}),
    "dqn": ("DQN", lambda: one(2.5e-4, 120, 84)),
    "discrete_cql": ("DiscreteCQL", lambda: one(3e-4, 256, 256)),
    "discrete_sac": ("DiscreteSAC", dict),
    "dt": ("DecisionTransformer", small_and_clipped),
}


def config(work: Work) -> Any:
    """Raises Unavailable where d3rlpy has no such algorithm."""
    if work.algorithm not in CONFIGS:
        raise Unavailable("d3rlpy does not have it")
    from d3rlpy import algos

    name, options = CONFIGS[work.algorithm]
    return getattr(algos, f"{name}Config")(batch_size=work.batch, **options())


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
    chosen = config(work)
    buffer = dataset(work)
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
