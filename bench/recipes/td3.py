"""TD3: twin delayed deterministic policy gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from bench import nets
from bench.engine.agent import Agent
from bench.recipe import Explore, Problem, Recipe
from bench.recipes._common import (
    MultiStep,
    actor_output,
    delayed_actor,
    largest_action,
    plain_table,
    smoothing,
    transition_sampler,
)
from rlobj import LossModule, TD3Loss


@dataclass(frozen=True)
class Hyper(MultiStep):
    """Fujimoto et al. 2018 (arXiv:1802.09477), section 6.1, with sizes and rates of the authors'
    present code (sfujim/TD3); the paper has 400 and 300 units, batches of 100 and lr 1e-3."""

    hidden: tuple[int, ...] = (256, 256)
    batch_size: int = 256
    lr: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    policy_noise: float = 0.2  # in units of the largest action
    noise_clip: float = 0.5
    policy_every: int = 2
    explore_noise: float = 0.1  # sd of the actions taken, in units of the largest action
    start_steps: int = 25_000  # uniform actions before the first update, online only
    normalize: bool = False
    normalize_eps: float = 1e-3


def critic_terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    value, info = loss.value_loss(batch)
    return {"loss_qvalue": value, "q": info["pred_value"].mean()}


def actor_terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    return {"loss_actor": loss.actor_loss(batch)[0]}


def build(hp: Hyper, problem: Problem) -> Agent:
    obs, act = problem.observation, problem.action.shape[0]
    loss = TD3Loss(
        nets.deterministic_actor(obs, problem.action, hp.hidden),
        nets.critics(2, obs, act, hp.hidden),
        loss_function="l2",
        **smoothing(hp, problem),
    )
    return delayed_actor(loss, hp, critic_terms, actor_terms, hp.lr, hp.lr)


def explore(hp: Hyper, problem: Problem) -> Explore:
    return gaussian_exploration(hp.explore_noise, problem)


def gaussian_exploration(noise: float, problem: Problem) -> Explore:
    """The actor's action and Gaussian noise, within the bounds; ``noise`` is its sd in units of
    the largest action."""
    low, high = problem.action.low, problem.action.high
    sd = noise * largest_action(problem)

    def act(loss: LossModule, observed: TensorDict) -> Tensor:
        return (actor_output(loss, observed) + sd * observed["noise"]).clamp(low, high)

    def draw(rng: np.random.Generator, step: int) -> np.ndarray:
        return rng.standard_normal(problem.action.shape[0])

    return Explore(act, draw)


RECIPE = Recipe(
    name="td3",
    label="TD3",
    paper="Fujimoto et al. 2018, Addressing Function Approximation Error, arXiv:1802.09477",
    hyper=Hyper,
    build=build,
    table=plain_table,
    sampler=transition_sampler,
    explore=explore,
    quick={"hidden": (128, 128), "batch_size": 128},
)
