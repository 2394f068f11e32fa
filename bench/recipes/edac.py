"""EDAC: ensemble-diversified actor-critic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

from bench import nets
from bench.engine.agent import Agent, Group, Phase
from bench.recipe import Problem, Published, Recipe
from bench.recipes import sac
from bench.recipes._common import MultiStep, distribution_mode, plain_table, transition_sampler
from rlobj.edac import EDACLoss


@dataclass(frozen=True)
class Base(MultiStep):
    """What EDAC and SAC-N share."""

    hidden: tuple[int, ...] = (256, 256, 256)
    batch_size: int = 256
    lr: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    critics: int = 10
    normalize: bool = False
    normalize_eps: float = 1e-3


@dataclass(frozen=True)
class Hyper(Base):
    """An et al. 2021 (arXiv:2110.01548), section 5 and appendix C, with the initialisation of the
    authors' code. The number of critics and the diversity's weight differ per dataset."""

    eta: float = 1.0


def critic_terms(loss: Any, batch: TensorDictBase) -> Mapping[str, Tensor]:
    """The critics see the actor just updated, as in the authors' update."""
    terms = sac.critic_terms(loss, batch)
    return {**terms, "loss_diversity": loss.diversity_loss(batch)[0]} if loss.eta else terms


def build(hp: Hyper, problem: Problem) -> Agent:
    return ensemble(hp, problem, hp.eta)


def ensemble(hp: Base, problem: Problem, eta: float) -> Agent:
    """SAC with many critics, diverse by a weight of ``eta``."""
    obs, act = problem.observation, problem.action.shape[0]
    actor = nets.tanh_gaussian_actor(obs, problem.action, hp.hidden, log_std=(-5.0, 2.0))
    critics = nets.critics(hp.critics, obs, act, hp.hidden)
    nets.small_last_(1e-3, actor)
    nets.small_last_(3e-3, *critics)
    loss = EDACLoss(
        actor,
        critics,
        num_qvalue_nets=hp.critics,
        eta=eta,
        action_spec=problem.action,
    )
    loss.make_value_estimator(gamma=hp.gamma)
    groups = (Group(("actor_network_params", "log_alpha"), hp.lr),)
    critic = Phase(
        "critic",
        critic_terms,
        (Group(("qvalue_network_params",), hp.lr),),
        targets=("qvalue_network",),
    )
    return Agent(loss, (Phase("actor", sac.actor_terms, groups), critic), hp.tau, distribution_mode)


RECIPE = Recipe(
    name="edac",
    label="EDAC",
    paper="An et al. 2021, Uncertainty-Based Offline RL with Diversified Q-Ensemble, "
    "arXiv:2110.01548",
    hyper=Hyper,
    build=build,
    table=plain_table,
    sampler=transition_sampler,
    quick={"hidden": (128, 128), "batch_size": 128, "critics": 10},
    overrides=(
        ("hopper", {"critics": 50}),
        ("*halfcheetah*medium-expert*", {"eta": 5.0}),
        ("*walker2d*medium-expert*", {"eta": 5.0}),
        ("pen", {"critics": 20, "eta": 10.0}),
        ("*pen*human*", {"eta": 1000.0}),
        ("door", {"critics": 50, "eta": 200.0}),
        ("hammer", {"critics": 50, "eta": 200.0}),
        ("relocate", {"critics": 50, "eta": 200.0}),
        ("maze2d", {"eta": 0.1}),
    ),
    steps=3_000_000,
    published=Published(
        "An et al. 2021, arXiv:2110.01548, table 1",
        {
            "d4rl/halfcheetah-medium-v2": (65.9, 0.6, 4),
            "d4rl/halfcheetah-medium-replay-v2": (61.3, 1.9, 4),
            "d4rl/halfcheetah-medium-expert-v2": (106.3, 1.9, 4),
            "d4rl/hopper-medium-v2": (101.6, 0.6, 4),
            "d4rl/hopper-medium-replay-v2": (101.0, 0.5, 4),
            "d4rl/hopper-medium-expert-v2": (110.7, 0.1, 4),
            "d4rl/walker2d-medium-v2": (92.5, 0.8, 4),
            "d4rl/walker2d-medium-replay-v2": (87.1, 2.3, 4),
            "d4rl/walker2d-medium-expert-v2": (114.7, 0.9, 4),
        },
    ),
)
