"""SAC: soft actor-critic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from bench import nets
from bench.engine.agent import Agent, Group, Phase, Policy
from bench.recipe import Explore, Problem, Recipe
from bench.recipes._common import MultiStep, distribution_mode, plain_table, transition_sampler
from rlobj import LossModule, SACLoss, noise


@dataclass(frozen=True)
class Base(MultiStep):
    """What SAC has on data and in an environment."""

    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 256
    lr: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    alpha_init: float = 1.0
    normalize: bool = False
    normalize_eps: float = 1e-3


@dataclass(frozen=True)
class Hyper(Base):
    """Haarnoja et al. 2018 (arXiv:1812.05905), table 1."""

    start_steps: int = 5_000  # uniform actions before the first update, online only


def critic_terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    value, info = loss.qvalue_loss(batch)
    return {"loss_qvalue": value, "td_error": info["td_error"].mean()}


def actor_terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    actor, info = loss.actor_loss(batch)
    return {
        "loss_actor": actor,
        "loss_alpha": loss.alpha_loss(info["log_prob"]).mean(),
        "alpha": loss.alpha,
        "entropy": -info["log_prob"].mean(),
    }


def build(hp: Hyper, problem: Problem) -> Agent:
    obs, act = problem.observation, problem.action.shape[0]
    loss = SACLoss(
        nets.tanh_gaussian_actor(obs, problem.action, hp.hidden),
        nets.critics(2, obs, act, hp.hidden),
        loss_function="l2",
        alpha_init=hp.alpha_init,
        action_spec=problem.action,
    )
    return agent(loss, hp)


def agent(loss: LossModule, hp: Base, policy: Policy = distribution_mode) -> Agent:
    """The update that SAC shares with its relatives: critics, then actor and temperature."""
    loss.make_value_estimator(gamma=hp.gamma)
    critic = Phase(
        "critic",
        critic_terms,
        (Group(("qvalue_network_params",), hp.lr),),
        targets=("qvalue_network",),
    )
    actor = Phase("actor", actor_terms, (Group(("actor_network_params", "log_alpha"), hp.lr),))
    return Agent(loss, (critic, actor), hp.tau, policy)


def sample(loss: LossModule, observed: TensorDict) -> Tensor:
    """A sampled action; its noise comes in as data under ``"noise"``."""
    with noise.using(noise.Tape([observed["noise"]])):
        return loss.distribution(observed).rsample()


def explore(hp: Hyper, problem: Problem) -> Explore:
    def draw(rng: np.random.Generator, step: int) -> np.ndarray:
        return rng.standard_normal(problem.action.shape[0])

    return Explore(sample, draw)


RECIPE = Recipe(
    name="sac",
    label="SAC",
    paper="Haarnoja et al. 2018, Soft Actor-Critic Algorithms and Applications, arXiv:1812.05905",
    hyper=Hyper,
    build=build,
    table=plain_table,
    sampler=transition_sampler,
    explore=explore,
    quick={"hidden": (128, 128), "batch_size": 128},
)
