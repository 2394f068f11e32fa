"""TD3+BC: a minimalist approach to offline reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensordict import TensorDictBase
from torch import Tensor

from bench import nets
from bench.engine.agent import Agent
from bench.recipe import Problem, Published, Recipe
from bench.recipes._common import (
    MultiStep,
    delayed_actor,
    plain_table,
    smoothing,
    transition_sampler,
)
from rlobj import LossModule, TD3BCLoss


@dataclass(frozen=True)
class Hyper(MultiStep):
    """Fujimoto & Gu 2021 (arXiv:2106.06860), table 3 and the authors' code (sfujim/TD3_BC)."""

    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 256
    lr: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 2.5
    policy_noise: float = 0.2  # in units of the largest action
    noise_clip: float = 0.5
    policy_every: int = 2
    normalize: bool = True
    normalize_eps: float = 1e-3


def critic_terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    value, info = loss.qvalue_loss(batch)
    return {"loss_qvalue": value, "q": info["pred_value"].mean()}


def actor_terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    value, info = loss.actor_loss(batch)
    return {"loss_actor": value, "bc": info["bc_loss"], "lambda": info["lmbd"]}


def build(hp: Hyper, problem: Problem) -> Agent:
    obs, act = problem.observation, problem.action.shape[0]
    loss = TD3BCLoss(
        nets.deterministic_actor(obs, problem.action, hp.hidden),
        nets.critics(2, obs, act, hp.hidden),
        alpha=hp.alpha,
        loss_function="l2",
        **smoothing(hp, problem),
    )
    return delayed_actor(loss, hp, critic_terms, actor_terms, hp.lr, hp.lr)


RECIPE = Recipe(
    name="td3_bc",
    label="TD3+BC",
    paper="Fujimoto & Gu 2021, A Minimalist Approach to Offline RL, arXiv:2106.06860",
    hyper=Hyper,
    build=build,
    table=plain_table,
    sampler=transition_sampler,
    quick={"hidden": (128, 128), "batch_size": 128},
    published=Published(
        "Fujimoto & Gu 2021, arXiv:2106.06860v2, v2 datasets",
        {
            "d4rl/halfcheetah-medium-v2": (48.3, 0.3, 5),
            "d4rl/halfcheetah-medium-replay-v2": (44.6, 0.5, 5),
            "d4rl/halfcheetah-medium-expert-v2": (90.7, 4.3, 5),
            "d4rl/hopper-medium-v2": (59.3, 4.2, 5),
            "d4rl/hopper-medium-replay-v2": (60.9, 18.8, 5),
            "d4rl/hopper-medium-expert-v2": (98.0, 9.4, 5),
            "d4rl/walker2d-medium-v2": (83.7, 2.1, 5),
            "d4rl/walker2d-medium-replay-v2": (81.8, 5.5, 5),
            "d4rl/walker2d-medium-expert-v2": (110.1, 0.5, 5),
        },
    ),
)
