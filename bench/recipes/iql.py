"""IQL: implicit Q-learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from bench import nets
from bench.engine.agent import Agent, Group, Phase, Policy
from bench.errors import ConfigError
from bench.recipe import Problem, Published, Recipe
from bench.recipes._common import (
    MultiStep,
    cosine,
    distribution_mode,
    episode_returns,
    scaled_table,
    transition_sampler,
)
from rlobj import IQLLoss, LossModule


@dataclass(frozen=True)
class Base(MultiStep):
    """What IQL shares with its descendants."""

    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 256
    lr: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    temperature: float = 3.0
    return_range: float = 0.0  # scale rewards so that returns span this much; 0: as they are
    reward_bias: float = 0.0
    schedule_steps: int = 0  # the actor's cosine decay ends here; 0: at the run's last step
    normalize: bool = False
    normalize_eps: float = 1e-3


@dataclass(frozen=True)
class Hyper(Base):
    """Kostrikov et al. 2021 (arXiv:2110.06169), section 5 and the authors' code."""

    expectile: float = 0.7
    dropout: float = 0.0


def value_terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    value, info = loss.value_loss(batch)
    return {"loss_value": value, "value": info["value"].mean()}


def terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    """Critics and actor see the value function just updated, as in the authors' update."""
    qvalue, _ = loss.qvalue_loss(batch)
    actor, info = loss.actor_loss(batch)
    return {"loss_qvalue": qvalue, "loss_actor": actor, "weight": info["weight"].mean()}


def build(hp: Hyper, problem: Problem) -> Agent:
    obs, act = problem.observation, problem.action.shape[0]
    loss = IQLLoss(
        nets.gaussian_actor(obs, problem.action, hp.hidden, hp.dropout),
        nets.critics(2, obs, act, hp.hidden),
        nets.value(obs, hp.hidden),
        loss_function="l2",
        temperature=hp.temperature,
        expectile=hp.expectile,
    )
    return agent(loss, hp)


def agent(loss: IQLLoss, hp: Base, policy: Policy = distribution_mode) -> Agent:
    """The update that IQL shares with its descendants."""
    loss.make_value_estimator(gamma=hp.gamma)
    value = Phase("value", value_terms, (Group(("value_network_params",), hp.lr),))
    groups = (
        Group(("qvalue_network_params",), hp.lr),
        Group(("actor_network_params",), hp.lr, schedule=cosine(hp.schedule_steps)),
    )
    update = Phase("update", terms, groups, targets=("qvalue_network",))
    return Agent(loss, (value, update), hp.tau, policy)


def table(hp: Base, transitions: TensorDict) -> TensorDict:
    """Rewards scaled to the spread of episode returns (MuJoCo) and shifted (AntMaze)."""
    scale = 1.0
    if hp.return_range > 0:
        returns = episode_returns(transitions)
        spread = float(returns.max() - returns.min())
        if spread <= 0:
            raise ConfigError(
                "return_range needs episodes of different return: --set return_range=0"
            )
        scale = hp.return_range / spread
    return scaled_table(transitions, scale, hp.reward_bias)


RECIPE = Recipe(
    name="iql",
    label="IQL",
    paper="Kostrikov et al. 2021, Offline RL with Implicit Q-Learning, arXiv:2110.06169",
    hyper=Hyper,
    build=build,
    table=table,
    sampler=transition_sampler,
    quick={"hidden": (128, 128), "batch_size": 128},
    overrides=(
        ("gym-mujoco", {"return_range": 1000.0}),
        ("adroit", {"temperature": 0.5, "dropout": 0.1}),
        ("kitchen", {"temperature": 0.5, "dropout": 0.1}),
        ("antmaze", {"temperature": 10.0, "expectile": 0.9, "reward_bias": -1.0}),
    ),
    published=Published(
        "Kostrikov et al. 2021, arXiv:2110.06169, table 1 (no spread printed)",
        {
            "d4rl/halfcheetah-medium-v2": (47.4, None, None),
            "d4rl/halfcheetah-medium-replay-v2": (44.2, None, None),
            "d4rl/halfcheetah-medium-expert-v2": (86.7, None, None),
            "d4rl/hopper-medium-v2": (66.3, None, None),
            "d4rl/hopper-medium-replay-v2": (94.7, None, None),
            "d4rl/hopper-medium-expert-v2": (91.5, None, None),
            "d4rl/walker2d-medium-v2": (78.3, None, None),
            "d4rl/walker2d-medium-replay-v2": (73.9, None, None),
            "d4rl/walker2d-medium-expert-v2": (109.6, None, None),
        },
    ),
)
