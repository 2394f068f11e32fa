"""DT: Decision Transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor

from bench.engine.agent import Agent, Group, Phase
from bench.engine.sampling import WindowSampler
from bench.recipe import Problem, Published, Recipe
from bench.recipes._common import episode_returns, warmup
from rlobj import DTLoss, LossModule
from rlobj.modules import TimedDTActor

_IN_KEYS: list[NestedKey] = ["observation", "action", "return_to_go", "t", ("collector", "mask")]


@dataclass(frozen=True)
class Hyper:
    """Chen et al. 2021 (arXiv:2106.01345), table 9 and the authors' code."""

    width: int = 128
    layers: int = 3
    heads: int = 1
    context: int = 20
    dropout: float = 0.1
    batch_size: int = 64
    lr: float = 1e-4
    weight_decay: float = 1e-4
    warmup_steps: int = 10_000
    clip_norm: float = 0.25
    return_scale: float = 1000.0
    target_returns: tuple[float, ...] = ()  # empty: best in the data, and halfway to its mean
    normalize: bool = True
    normalize_eps: float = 1e-6


def terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    return {"loss_bc": loss(batch)["loss"]}


def build(hp: Hyper, problem: Problem) -> Agent:
    net = TimedDTActor(
        problem.observation,
        problem.action.shape[0],
        width=hp.width,
        layers=hp.layers,
        heads=hp.heads,
        dropout=hp.dropout,
        max_timestep=problem.max_timestep,
        low=problem.action.low,
        high=problem.action.high,
    )
    loss = DTLoss(TensorDictModule(net, in_keys=_IN_KEYS, out_keys=["action"]))
    group = Group(
        ("actor_network_params",),
        hp.lr,
        weight_decay=hp.weight_decay,
        decoupled=True,
        schedule=warmup(hp.warmup_steps),
    )
    phase = Phase("actor", terms, (group,), clip_norm=hp.clip_norm)
    return Agent(loss, (phase,), policy=policy)


def policy(loss: LossModule, observed: TensorDict) -> Tensor:
    """Predicted actions of a window, ``[batch, context, action]``."""
    return loss.run_network("actor_network", observed)["action"]


def table(hp: Hyper, transitions: TensorDict) -> TensorDict:
    """Steps with their undiscounted return-to-go in units of ``return_scale``."""
    reward = transitions["next", "reward"].squeeze(-1).double()
    episode, total = transitions["episode"], episode_returns(transitions)
    before = reward.cumsum(0) - reward  # over the whole data
    first = transitions["t"] == 0
    start = torch.zeros_like(total)
    start[episode[first]] = before[first]
    to_go = total[episode] - (before - start[episode])
    steps = transitions.select("observation", "action", "t", "episode")
    return steps.set("return_to_go", (to_go / hp.return_scale).float().unsqueeze(-1))


def sampler(
    hp: Hyper, data: TensorDict, device: torch.device, file: Path | None = None
) -> WindowSampler:
    return WindowSampler(data, hp.batch_size, hp.context, device, file)


RECIPE = Recipe(
    name="dt",
    label="DT",
    paper="Chen et al. 2021, Decision Transformer, arXiv:2106.01345",
    hyper=Hyper,
    build=build,
    table=table,
    sampler=sampler,
    quick={"width": 64, "batch_size": 32, "warmup_steps": 1_000},
    quick_steps=10_000,
    overrides=(
        ("hopper", {"target_returns": (3600.0, 1800.0)}),
        ("halfcheetah", {"target_returns": (12000.0, 6000.0)}),
        ("walker2d", {"target_returns": (5000.0, 2500.0)}),
    ),
    steps=100_000,
    eval_interval=10_000,
    eval_episodes=100,
    sequence=True,
    published=Published(
        "Chen et al. 2021, arXiv:2106.01345, table 2",
        {
            "d4rl/halfcheetah-medium-v2": (42.6, 0.1, 3),
            "d4rl/halfcheetah-medium-replay-v2": (36.6, 0.8, 3),
            "d4rl/halfcheetah-medium-expert-v2": (86.8, 1.3, 3),
            "d4rl/hopper-medium-v2": (67.6, 1.0, 3),
            "d4rl/hopper-medium-replay-v2": (82.7, 7.0, 3),
            "d4rl/hopper-medium-expert-v2": (107.6, 1.8, 3),
            "d4rl/walker2d-medium-v2": (74.0, 1.4, 3),
            "d4rl/walker2d-medium-replay-v2": (66.6, 3.0, 3),
            "d4rl/walker2d-medium-expert-v2": (108.1, 0.2, 3),
        },
    ),
)
