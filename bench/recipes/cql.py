"""CQL: conservative Q-learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from bench import nets
from bench.engine.agent import Agent, Group, Phase
from bench.recipe import Problem, Published, Recipe
from bench.recipes._common import MultiStep, distribution_mode, scaled_table, transition_sampler
from rlobj import CQLLoss, LossModule


@dataclass(frozen=True)
class Hyper(MultiStep):
    """Kumar et al. 2020 (arXiv:2006.04779), appendix F, with the penalty weight and the policy's
    learning rate that CORL uses for gym-mujoco (the authors' README recommends a weight of 5 or
    10 without Lagrange)."""

    hidden: tuple[int, ...] = (256, 256, 256)
    batch_size: int = 256
    policy_lr: float = 3e-5
    critic_lr: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    min_q_weight: float = 10.0
    temperature: float = 1.0
    num_random: int = 10
    lagrange: bool = False
    lagrange_thresh: float = 5.0
    max_q_backup: bool = False
    deterministic_backup: bool = True
    orthogonal: bool = True
    reward_scale: float = 1.0
    reward_bias: float = 0.0
    normalize: bool = True
    normalize_eps: float = 1e-3


def terms(loss: LossModule, batch: TensorDictBase) -> Mapping[str, Tensor]:
    """All losses at the same parameters, as in the authors' update."""
    qvalue, q_info = loss.q_loss(batch)
    cql, cql_info = loss.cql_loss(batch)
    actor, info = loss.actor_loss(batch)
    out = {
        "loss_qvalue": qvalue,
        "loss_cql": cql,
        "loss_actor": actor,
        "loss_alpha": loss.alpha_loss(info["log_prob"]).mean(),
        "q": q_info["pred_value"].mean(),
        "gap": cql_info["cql_gap"].mean(),
        "entropy": -info["log_prob"].mean(),
    }
    if loss.with_lagrange:
        out["loss_alpha_prime"] = loss.alpha_prime_loss(cql_info["cql_gap"])[0].mean()
    return out


def build(hp: Hyper, problem: Problem, cls: type[CQLLoss] = CQLLoss) -> Agent:
    obs, act = problem.observation, problem.action.shape[0]
    loss = cls(
        nets.tanh_gaussian_actor(obs, problem.action, hp.hidden, orthogonal=hp.orthogonal),
        nets.critics(2, obs, act, hp.hidden, orthogonal=hp.orthogonal),
        loss_function="l2",
        action_spec=problem.action,
        temperature=hp.temperature,
        min_q_weight=hp.min_q_weight,
        max_q_backup=hp.max_q_backup,
        deterministic_backup=hp.deterministic_backup,
        num_random=hp.num_random,
        with_lagrange=hp.lagrange,
        lagrange_thresh=hp.lagrange_thresh,
    )
    loss.make_value_estimator(gamma=hp.gamma)
    prime = ("log_alpha_prime",) if hp.lagrange else ()
    groups = (
        Group(("qvalue_network_params", *prime), hp.critic_lr),
        Group(("actor_network_params", "log_alpha"), hp.policy_lr),
    )
    phase = Phase("update", terms, groups, targets=("qvalue_network",))
    return Agent(loss, (phase,), hp.tau, distribution_mode)


def table(hp: Hyper, transitions: TensorDict) -> TensorDict:
    return scaled_table(transitions, hp.reward_scale, hp.reward_bias)


RECIPE = Recipe(
    name="cql",
    label="CQL",
    paper="Kumar et al. 2020, Conservative Q-Learning for Offline RL, arXiv:2006.04779",
    hyper=Hyper,
    build=build,
    table=table,
    sampler=transition_sampler,
    quick={"hidden": (128, 128, 128), "batch_size": 64},
    overrides=(
        ("adroit", {"min_q_weight": 1.0, "policy_lr": 1e-4}),
        (
            "antmaze",
            {
                "hidden": (256, 256, 256, 256, 256),
                "policy_lr": 1e-4,
                "min_q_weight": 5.0,
                "lagrange": True,
                "lagrange_thresh": 4.0,  # CORL's 0.8 before its weight of 5
                "reward_scale": 10.0,
                "reward_bias": -5.0,
                "max_q_backup": True,
                "normalize": False,
            },
        ),
    ),
    published=Published(
        "re-run in Kostrikov et al. 2021, arXiv:2110.06169, table 1 (no spread printed)",
        {
            "d4rl/halfcheetah-medium-v2": (44.0, None, None),
            "d4rl/halfcheetah-medium-replay-v2": (45.5, None, None),
            "d4rl/halfcheetah-medium-expert-v2": (91.6, None, None),
            "d4rl/hopper-medium-v2": (58.5, None, None),
            "d4rl/hopper-medium-replay-v2": (95.0, None, None),
            "d4rl/hopper-medium-expert-v2": (105.4, None, None),
            "d4rl/walker2d-medium-v2": (72.5, None, None),
            "d4rl/walker2d-medium-replay-v2": (77.2, None, None),
            "d4rl/walker2d-medium-expert-v2": (108.8, None, None),
        },
    ),
)
