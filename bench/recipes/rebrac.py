"""ReBRAC: TD3+BC revisited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from bench import nets
from bench.engine.agent import Agent
from bench.recipe import Problem, Published, Recipe
from bench.recipes._common import (
    MultiStep,
    delayed_actor,
    next_actions,
    scaled_table,
    smoothing,
    transition_sampler,
)
from rlobj import LossModule
from rlobj.rebrac import ReBRACLoss


@dataclass(frozen=True)
class Hyper(MultiStep):
    """Tarasov et al. 2023 (arXiv:2305.09836), appendix B. The two penalties differ per dataset."""

    hidden: tuple[int, ...] = (256, 256, 256)
    batch_size: int = 256
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    actor_bc: float = 0.01  # beta_1
    critic_bc: float = 0.01  # beta_2
    policy_noise: float = 0.2  # in units of the largest action
    noise_clip: float = 0.5
    policy_every: int = 2
    layer_norm: bool = True  # in the critics
    reward_scale: float = 1.0
    normalize: bool = False
    normalize_eps: float = 1e-3


def critic_terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    value, info = loss.qvalue_loss(batch)
    return {"loss_qvalue": value, "q": info["pred_value"].mean()}


def actor_terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    value, info = loss.actor_loss(batch)
    return {"loss_actor": value, "bc": info["bc_loss"], "lambda": info["lmbd"]}


def build(hp: Hyper, problem: Problem) -> Agent:
    obs, act = problem.observation, problem.action.shape[0]
    actor = nets.deterministic_actor(obs, problem.action, hp.hidden)
    critics = nets.critics(2, obs, act, hp.hidden, norm="after" if hp.layer_norm else None)
    nets.small_last_(1e-3, actor)
    nets.small_last_(3e-3, *critics)
    loss = ReBRACLoss(
        actor,
        critics,
        actor_bc_coeff=hp.actor_bc,
        critic_bc_coeff=hp.critic_bc,
        **smoothing(hp, problem),
    )
    return delayed_actor(loss, hp, critic_terms, actor_terms, hp.critic_lr, hp.actor_lr)


def table(hp: Hyper, transitions: TensorDict) -> TensorDict:
    return next_actions(scaled_table(transitions, hp.reward_scale, 0.0), transitions)


RECIPE = Recipe(
    name="rebrac",
    label="ReBRAC",
    paper="Tarasov et al. 2023, Revisiting the Minimalist Approach to Offline RL, arXiv:2305.09836",
    hyper=Hyper,
    build=build,
    table=table,
    sampler=transition_sampler,
    quick={"hidden": (128, 128, 128), "batch_size": 128},
    overrides=(
        ("gym-mujoco", {"batch_size": 1024, "actor_lr": 1e-3, "critic_lr": 1e-3}),
        ("antmaze", {"gamma": 0.999, "critic_lr": 5e-5, "reward_scale": 100.0}),
        ("maze2d", {"actor_bc": 0.003, "critic_bc": 0.001}),
        ("*antmaze?large-diverse-v*", {"actor_bc": 0.002, "critic_bc": 0.002}),
        ("*antmaze?large-play-v*", {"actor_bc": 0.002, "critic_bc": 0.001}),
        ("*antmaze?medium-diverse-v*", {"actor_bc": 0.001, "critic_bc": 0.0}),
        ("*antmaze?medium-play-v*", {"actor_bc": 0.001, "critic_bc": 0.0005}),
        ("*antmaze?umaze-diverse-v*", {"actor_bc": 0.003, "critic_bc": 0.001}),
        ("*antmaze?umaze-v*", {"actor_bc": 0.003, "critic_bc": 0.002}),
        ("*door?cloned-v*", {"actor_bc": 0.01, "critic_bc": 0.1}),
        ("*door?expert-v*", {"actor_bc": 0.05, "critic_bc": 0.01}),
        ("*door?human-v*", {"actor_bc": 0.1, "critic_bc": 0.1}),
        ("*halfcheetah?expert-v*", {"actor_bc": 0.01, "critic_bc": 0.01}),
        ("*halfcheetah?medium-expert-v*", {"actor_bc": 0.01, "critic_bc": 0.1}),
        ("*halfcheetah?medium-replay-v*", {"actor_bc": 0.01, "critic_bc": 0.001}),
        ("*halfcheetah?medium-v*", {"actor_bc": 0.001, "critic_bc": 0.01}),
        ("*halfcheetah?random-v*", {"actor_bc": 0.001, "critic_bc": 0.1}),
        ("*hammer?cloned-v*", {"actor_bc": 0.1, "critic_bc": 0.5}),
        ("*hammer?expert-v*", {"actor_bc": 0.01, "critic_bc": 0.01}),
        ("*hammer?human-v*", {"actor_bc": 0.01, "critic_bc": 0.5}),
        ("*hopper?expert-v*", {"actor_bc": 0.1, "critic_bc": 0.1}),
        ("*hopper?medium-expert-v*", {"actor_bc": 0.1, "critic_bc": 0.01}),
        ("*hopper?medium-replay-v*", {"actor_bc": 0.05, "critic_bc": 0.5}),
        ("*hopper?medium-v*", {"actor_bc": 0.01, "critic_bc": 0.01}),
        ("*hopper?random-v*", {"actor_bc": 0.001, "critic_bc": 0.01}),
        ("*pen?cloned-v*", {"actor_bc": 0.05, "critic_bc": 0.5}),
        ("*pen?expert-v*", {"actor_bc": 0.01, "critic_bc": 0.01}),
        ("*pen?human-v*", {"actor_bc": 0.1, "critic_bc": 0.5}),
        ("*relocate?cloned-v*", {"actor_bc": 0.1, "critic_bc": 0.01}),
        ("*relocate?expert-v*", {"actor_bc": 0.05, "critic_bc": 0.01}),
        ("*relocate?human-v*", {"actor_bc": 0.1, "critic_bc": 0.01}),
        ("*walker2d?expert-v*", {"actor_bc": 0.01, "critic_bc": 0.5}),
        ("*walker2d?medium-expert-v*", {"actor_bc": 0.01, "critic_bc": 0.01}),
        ("*walker2d?medium-replay-v*", {"actor_bc": 0.05, "critic_bc": 0.01}),
        ("*walker2d?medium-v*", {"actor_bc": 0.05, "critic_bc": 0.1}),
        ("*walker2d?random-v*", {"actor_bc": 0.01, "critic_bc": 0.0}),
    ),
    published=Published(
        "Tarasov et al. 2023, arXiv:2305.09836, table 16",
        {
            "d4rl/halfcheetah-medium-v2": (65.6, 1.0, 10),
            "d4rl/halfcheetah-medium-replay-v2": (51.0, 0.8, 10),
            "d4rl/halfcheetah-medium-expert-v2": (101.1, 5.2, 10),
            "d4rl/hopper-medium-v2": (102.0, 1.0, 10),
            "d4rl/hopper-medium-replay-v2": (98.1, 5.3, 10),
            "d4rl/hopper-medium-expert-v2": (107.0, 6.4, 10),
            "d4rl/walker2d-medium-v2": (82.5, 3.6, 10),
            "d4rl/walker2d-medium-replay-v2": (77.3, 7.9, 10),
            "d4rl/walker2d-medium-expert-v2": (111.6, 0.3, 10),
        },
    ),
)
