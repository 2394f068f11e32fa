"""AWAC: advantage-weighted actor-critic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from bench import nets
from bench.engine.agent import Agent, Group, Phase
from bench.recipe import Problem, Published, Recipe
from bench.recipes._common import MultiStep, distribution_mode, scaled_table, transition_sampler
from rlobj import LossModule
from rlobj.awac import AWACLoss


@dataclass(frozen=True)
class Hyper(MultiStep):
    """Nair et al. 2020 (arXiv:2006.09359) as CORL runs it, which is another algorithm than the
    "AWAC" of the IQL paper's table: 79 points against 50 on the mean of the gym-mujoco sets. CORL
    clips the policy's samples to the bounds before the critics see them; here they are not."""

    hidden: tuple[int, ...] = (256, 256, 256)
    batch_size: int = 256
    lr: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    temperature: float = 0.3333  # lambda
    reward_bias: float = 0.0
    normalize: bool = True
    normalize_eps: float = 1e-3


def critic_terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    value, info = loss.qvalue_loss(batch)
    return {"loss_qvalue": value, "td_error": info["td_error"].mean()}


def actor_terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    value, info = loss.actor_loss(batch)
    return {"loss_actor": value, "weight": info["weight"].mean()}


def build(hp: Hyper, problem: Problem) -> Agent:
    obs, act = problem.observation, problem.action.shape[0]
    loss = AWACLoss(
        nets.gaussian_actor(obs, problem.action, hp.hidden, squash=False, log_std=(-20.0, 2.0)),
        nets.critics(2, obs, act, hp.hidden),
        temperature=hp.temperature,
        max_weight=100.0,
    )
    loss.make_value_estimator(gamma=hp.gamma)
    critic = Phase("critic", critic_terms, (Group(("qvalue_network_params",), hp.lr),))
    actor = Phase(
        "actor",
        actor_terms,
        (Group(("actor_network_params",), hp.lr),),
        targets=("qvalue_network",),
    )
    return Agent(loss, (critic, actor), hp.tau, distribution_mode)


def table(hp: Hyper, transitions: TensorDict) -> TensorDict:
    return scaled_table(transitions, 1.0, hp.reward_bias)


RECIPE = Recipe(
    name="awac",
    label="AWAC",
    paper="Nair et al. 2020, Accelerating Online RL with Offline Datasets, arXiv:2006.09359",
    hyper=Hyper,
    build=build,
    table=table,
    sampler=transition_sampler,
    quick={"hidden": (128, 128, 128), "batch_size": 128},
    overrides=(
        ("adroit", {"temperature": 0.1}),
        ("maze2d", {"temperature": 0.1}),
        ("antmaze", {"temperature": 0.1, "reward_bias": -1.0}),
    ),
    published=Published(
        "CORL, README at eeeeef2671, final scores",
        {
            "d4rl/halfcheetah-medium-v2": (50.02, 0.27, 4),
            "d4rl/halfcheetah-medium-replay-v2": (45.13, 0.88, 4),
            "d4rl/halfcheetah-medium-expert-v2": (95.0, 0.61, 4),
            "d4rl/hopper-medium-v2": (63.02, 4.56, 4),
            "d4rl/hopper-medium-replay-v2": (98.88, 2.07, 4),
            "d4rl/hopper-medium-expert-v2": (101.9, 6.22, 4),
            "d4rl/walker2d-medium-v2": (68.52, 27.19, 4),
            "d4rl/walker2d-medium-replay-v2": (80.62, 3.58, 4),
            "d4rl/walker2d-medium-expert-v2": (111.44, 1.62, 4),
        },
    ),
)
