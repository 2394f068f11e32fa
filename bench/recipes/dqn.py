"""DQN: deep Q-learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from bench import nets
from bench.engine.agent import Agent, Group, Phase, Terms
from bench.recipe import Explore, Problem, Recipe
from bench.recipes._common import MultiStep, plain_table, transition_sampler
from rlobj import DQNLoss, LossModule


@dataclass(frozen=True)
class Base(MultiStep):
    """Mnih et al. 2015 (Nature 518, 529), with the sizes, rates and exploration that CleanRL
    publishes for tasks of few numbers (Huang et al. 2022, JMLR 23(274), ``dqn.py``). Unlike both it
    updates at every step and lets the target network follow slowly, which needs no schedule."""

    hidden: tuple[int, ...] = (120, 84)
    batch_size: int = 128
    lr: float = 2.5e-4
    gamma: float = 0.99
    tau: float = 0.005
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_steps: int = 250_000  # environment steps until epsilon_end, online only
    start_steps: int = 10_000  # uniform actions before the first update, online only
    normalize: bool = False
    normalize_eps: float = 1e-3


@dataclass(frozen=True)
class Hyper(Base):
    """:class:`Base`, and which network values the next action."""

    double: bool = False  # van Hasselt et al. 2016, arXiv:1509.06461


def terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    value, info = loss.qvalue_loss(batch)
    return {"loss_qvalue": value, "q": info["pred_value"].mean()}


def greedy(loss: LossModule, observed: TensorDict) -> Tensor:
    """The action of largest value, int64 ``[*batch]``."""
    return loss.run_network("value_network", observed)["action"]


def build(hp: Hyper, problem: Problem) -> Agent:
    loss = DQNLoss(
        nets.q_values(problem.observation, problem.n_actions, hp.hidden),
        loss_function="smooth_l1",  # the paper clips errors to [-1, 1]
        double_dqn=hp.double,
    )
    loss.make_value_estimator(gamma=hp.gamma)
    return agent(loss, hp, terms)


def agent(loss: LossModule, hp: Any, terms: Terms) -> Agent:
    """One step on Q(s, ·), whose delayed copy follows."""
    group = Group(("value_network_params",), hp.lr)
    phase = Phase("update", terms, (group,), targets=("value_network",))
    return Agent(loss, (phase,), hp.tau, greedy)


def explore(hp: Base, problem: Problem) -> Explore:
    """Epsilon-greedy; ``"noise"`` is a uniform action, or -1 for the greedy one."""

    def act(loss: LossModule, observed: TensorDict) -> Tensor:
        chosen = observed["noise"].squeeze(-1)
        return torch.where(chosen < 0, greedy(loss, observed), chosen.long())

    def draw(rng: np.random.Generator, step: int) -> np.ndarray:
        decayed = min(1.0, step / hp.epsilon_steps)
        epsilon = hp.epsilon_start + (hp.epsilon_end - hp.epsilon_start) * decayed
        action = rng.integers(problem.n_actions)
        return np.array([action if rng.random() < epsilon else -1])

    return Explore(act, draw)


RECIPE = Recipe(
    name="dqn",
    label="DQN",
    paper="Mnih et al. 2015, Human-level control through deep RL, Nature 518, 529",
    hyper=Hyper,
    build=build,
    table=plain_table,
    sampler=transition_sampler,
    discrete=True,
    explore=explore,
    quick={"hidden": (128, 128)},
    steps=500_000,
)
