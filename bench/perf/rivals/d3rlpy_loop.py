"""d3rlpy: its algorithms' own update on batches of its own buffer, as its ``fit`` calls them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from bench.perf.protocol import Program, Unavailable, serve
from bench.perf.work import Work, arrays, check_device, program

WIDE = (256, 256, 256)
Configs = dict[str, Callable[[], Any]]


def rates(actor: float, critic: float = 3e-4) -> dict[str, float]:
    return {"actor_learning_rate": actor, "critic_learning_rate": critic}


def nets(*hidden: int, norm: bool = False) -> dict[str, Any]:
    """``norm``: the critics' layers end in a LayerNorm."""
    from d3rlpy.models import VectorEncoderFactory  # type: ignore[import-not-found]

    kinds = {"actor": False, "critic": norm}
    return {
        f"{net}_encoder_factory": VectorEncoderFactory(list(hidden), use_layer_norm=normed)
        for net, normed in kinds.items()
    }


def continuous(batch: int) -> Configs:
    """The recipes' hyper-parameters where d3rlpy's defaults differ."""
    from d3rlpy import algos  # type: ignore[import-not-found]

    penalised = {"batch_size": batch, "alpha_learning_rate": 0.0, **nets(*WIDE)}  # no Lagrange
    bc = partial(algos.BCConfig, batch_size=batch, learning_rate=3e-4)
    return {
        "bc": bc,
        "bc10": bc,  # of other rows
        "td3": partial(algos.TD3Config, batch_size=batch),
        "td3_bc": partial(algos.TD3PlusBCConfig, batch_size=batch),
        "rebrac": partial(
            algos.ReBRACConfig, batch_size=batch, **rates(3e-4), **nets(*WIDE, norm=True)
        ),
        "ddpg": partial(
            algos.DDPGConfig, batch_size=batch, tau=1e-3, **rates(1e-4, 1e-3), **nets(400, 300)
        ),
        "iql": partial(algos.IQLConfig, batch_size=batch),
        "awac": partial(algos.AWACConfig, batch_size=batch, lam=0.3333, **nets(*WIDE)),
        "sac": partial(algos.SACConfig, batch_size=batch),
        "sac_n": partial(algos.SACConfig, batch_size=batch, n_critics=10, **nets(*WIDE)),
        "cql": partial(
            algos.CQLConfig,
            conservative_weight=10.0,
            temp_learning_rate=3e-5,
            **rates(3e-5),
            **penalised,
        ),
        "cal_ql": partial(algos.CalQLConfig, max_q_backup=True, **rates(1e-4), **penalised),
    }


def others(batch: int) -> Configs:
    """For numbered actions, where its target network is a copy made now and then; on sequences."""
    from d3rlpy import algos, models, optimizers

    def one(cls: Any, *hidden: int, lr: float) -> Callable[[], Any]:
        encoder = models.VectorEncoderFactory(list(hidden))
        return partial(cls, batch_size=batch, learning_rate=lr, encoder_factory=encoder)

    return {
        "dqn": one(algos.DQNConfig, 120, 84, lr=2.5e-4),
        "discrete_cql": one(algos.DiscreteCQLConfig, 256, 256, lr=3e-4),
        "discrete_sac": partial(algos.DiscreteSACConfig, batch_size=batch),
        "dt": partial(
            algos.DecisionTransformerConfig,
            batch_size=batch,
            context_size=20,
            max_timestep=1000,
            encoder_factory=models.VectorEncoderFactory([128], exclude_last_activation=True),
            optim_factory=optimizers.GPTAdamWFactory(
                weight_decay=1e-4,
                clip_grad_norm=0.25,
                lr_scheduler_factory=optimizers.WarmupSchedulerFactory(10_000),
            ),
        ),
    }


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
    known = {**continuous(work.batch), **others(work.batch)}
    if work.algorithm not in known:
        raise Unavailable("d3rlpy does not have it")
    chosen, buffer = known[work.algorithm](), dataset(work)
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
