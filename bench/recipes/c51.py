"""C51: distributional Q-learning on a fixed support."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from bench import nets
from bench.engine.agent import Agent
from bench.recipe import Problem, Recipe
from bench.recipes import dqn
from bench.recipes._common import plain_table, transition_sampler
from rlobj import DistributionalDQNLoss, LossModule
from rlobj.modules import DistributionalQValueActor


@dataclass(frozen=True)
class Hyper(dqn.Base):
    """Bellemare et al. 2017 (arXiv:1707.06887) with the support that CleanRL publishes for tasks of
    few numbers (Huang et al. 2022, JMLR 23(274), ``c51.py``); DQN's settings otherwise."""

    atoms: int = 101
    v_min: float = -100.0
    v_max: float = 100.0


def terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    return {"loss_qvalue": loss.qvalue_loss(batch)[0]}


def build(hp: Hyper, problem: Problem) -> Agent:
    net = nets.mlp(problem.observation, (hp.atoms, problem.n_actions), hp.hidden)
    support = torch.linspace(hp.v_min, hp.v_max, hp.atoms, device="cpu")  # its values are checked
    actor = DistributionalQValueActor(net, support, action_space="categorical")
    loss = DistributionalDQNLoss(actor, gamma=hp.gamma)
    return dqn.agent(loss, hp, terms)


RECIPE = Recipe(
    name="c51",
    label="C51",
    paper="Bellemare et al. 2017, A Distributional Perspective on RL, arXiv:1707.06887",
    hyper=Hyper,
    build=build,
    table=plain_table,
    sampler=transition_sampler,
    discrete=True,
    explore=dqn.explore,
    quick=dqn.RECIPE.quick,
    steps=500_000,
)
