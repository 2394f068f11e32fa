"""Discrete CQL: conservative Q-learning over numbered actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensordict import TensorDictBase
from torch import Tensor

from bench import nets
from bench.engine.agent import Agent
from bench.recipe import Problem, Recipe
from bench.recipes import dqn
from bench.recipes._common import MultiStep, plain_table, transition_sampler
from rlobj import DiscreteCQLLoss, LossModule


@dataclass(frozen=True)
class Hyper(MultiStep):
    """Kumar et al. 2020 (arXiv:2006.04779), eq. 4, with the weight of the paper's larger Atari
    sets (4 on the smallest, as in d3rlpy); sizes and rates are torchrl's for CartPole."""

    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 128
    lr: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    min_q_weight: float = 1.0
    normalize: bool = False
    normalize_eps: float = 1e-3


def build(hp: Hyper, problem: Problem) -> Agent:
    net = nets.q_values(problem.observation, problem.n_actions, hp.hidden)
    loss = DiscreteCQLLoss(net)
    loss.make_value_estimator(gamma=hp.gamma)

    def terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
        out = loss(batch)  # one pass of the network for both terms
        value, gap, q = (out[k] for k in ("loss_qvalue", "loss_cql", "pred_value"))
        return {"loss_qvalue": value, "loss_cql": hp.min_q_weight * gap, "gap": gap, "q": q}

    return dqn.agent(loss, hp, terms)


RECIPE = Recipe(
    name="discrete_cql",
    label="Discrete CQL",
    paper="Kumar et al. 2020, Conservative Q-Learning for Offline RL, arXiv:2006.04779",
    hyper=Hyper,
    build=build,
    table=plain_table,
    sampler=transition_sampler,
    discrete=True,
    quick={"hidden": (128, 128)},
)
