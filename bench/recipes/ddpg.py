"""DDPG: deep deterministic policy gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensordict import TensorDictBase
from torch import Tensor

from bench import nets
from bench.engine.agent import Agent, Group, Phase
from bench.recipe import Explore, Problem, Recipe
from bench.recipes import td3
from bench.recipes._common import MultiStep, actor_output, plain_table, transition_sampler
from rlobj import DDPGLoss, LossModule


@dataclass(frozen=True)
class Hyper(MultiStep):
    """Sizes and rates of Lillicrap et al. 2015 (arXiv:1509.02971), section 7. Unlike there: no
    batch normalisation, the critic reads actions in its first layer, torch's initialisation, actor
    and critic step at the same parameters, and Gaussian exploration (Fujimoto et al. 2018)."""

    hidden: tuple[int, ...] = (400, 300)
    batch_size: int = 64
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    weight_decay: float = 1e-2  # of the critic
    gamma: float = 0.99
    tau: float = 0.001
    explore_noise: float = 0.1  # sd of the actions taken, in units of the largest action
    start_steps: int = 10_000  # uniform actions before the first update, online only
    normalize: bool = False
    normalize_eps: float = 1e-3


def terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    value, info = loss.loss_value(batch)
    actor, _ = loss.loss_actor(batch)
    return {"loss_qvalue": value, "loss_actor": actor, "q": info["pred_value"].mean()}


def build(hp: Hyper, problem: Problem) -> Agent:
    obs, act = problem.observation, problem.action.shape[0]
    actor = nets.deterministic_actor(obs, problem.action, hp.hidden)
    (critic,) = nets.critics(1, obs, act, hp.hidden)
    loss = DDPGLoss(actor, critic, delay_actor=True)
    loss.make_value_estimator(gamma=hp.gamma)
    groups = (
        Group(("value_network_params",), hp.critic_lr, weight_decay=hp.weight_decay),
        Group(("actor_network_params",), hp.actor_lr),
    )
    phase = Phase("update", terms, groups, targets=("value_network", "actor_network"))
    return Agent(loss, (phase,), hp.tau, actor_output)


def explore(hp: Hyper, problem: Problem) -> Explore:
    return td3.gaussian_exploration(hp.explore_noise, problem)


RECIPE = Recipe(
    name="ddpg",
    label="DDPG",
    paper="Lillicrap et al. 2015, Continuous Control with Deep RL, arXiv:1509.02971",
    hyper=Hyper,
    build=build,
    table=plain_table,
    sampler=transition_sampler,
    explore=explore,
    quick={"hidden": (128, 128), "batch_size": 128},
)
