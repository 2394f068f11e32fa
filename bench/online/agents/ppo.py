"""PPO with a clipped objective, as it trains in an environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from bench import nets
from bench.engine.agent import Agent, Group, Phase
from bench.online.rollouts import OnPolicy, mean_and_sd
from bench.recipe import Explore, Problem
from bench.recipes._common import distribution_mode, likeliest
from rlobj import ClipPPOLoss, LossModule
from rlobj.modules import (
    MLP,
    IndependentNormal,
    ProbabilisticActor,
    SafeModule,
    ValueOperator,
)
from rlobj.specs import Categorical

_LEAST_SD = 1e-2  # that observations are divided by
_FURTHEST = 10.0  # of an observation from their mean, in standard deviations


@dataclass(frozen=True)
class Hyper:
    """Schulman et al. 2017 (arXiv:1707.06347), section 6.1 and table 3: 64 tanh units twice,
    rollouts of 2048 steps (here of eight environments), ten epochs in batches of 64, nothing for
    entropy. As in the authors' code (openai/baselines, ppo2) advantages are standardised by batch,
    observations by all seen so far, rewards are divided by the spread of returns so far, weights
    start orthogonal and gradients are clipped; unlike there those of actor and critic apart."""

    hidden: tuple[int, ...] = (64, 64)
    lr: float = 3e-4
    gamma: float = 0.99
    lmbda: float = 0.95
    clip_epsilon: float = 0.2
    entropy_coeff: float = 0.0
    clip_norm: float = 0.5
    environments: int = 8
    horizon: int = 256  # steps in each of them per rollout
    minibatches: int = 32
    epochs: int = 10
    normalize: bool = True
    scale_rewards: bool = True


class Standardized(nn.Module):
    """Observations by what was seen so far."""

    seen_mean: Tensor
    seen_sd: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("seen_mean", torch.zeros(width))
        self.register_buffer("seen_sd", torch.ones(width))

    def forward(self, observation: Tensor) -> Tensor:
        return ((observation - self.seen_mean) / self.seen_sd).clamp(-_FURTHEST, _FURTHEST)


def follow(hp: Hyper, tensors: Mapping[str, Tensor], moments: Tensor) -> None:
    mean, sd = mean_and_sd(moments)
    found = {"seen_mean": mean, "seen_sd": sd.clamp_min(_LEAST_SD)} if hp.normalize else {}
    for name, tensor in tensors.items():
        if (last := name.rpartition(".")[2]) in found:
            tensor.copy_(found[last])


def _network(hp: Hyper, problem: Problem, outputs: int, last_gain: float) -> nn.Sequential:
    net = MLP(problem.observation, outputs, num_cells=list(hp.hidden), activation_class=nn.Tanh)
    nets.orthogonal_(net, last_gain)
    return nn.Sequential(Standardized(problem.observation), net)


def _actor(hp: Hyper, problem: Problem) -> ProbabilisticActor:
    """Continuous actions are in units in which [-1, 1] is what the environment takes."""
    if isinstance(problem.space, Categorical):
        net = _network(hp, problem, problem.n_actions, 1e-2)
        return ProbabilisticActor(
            SafeModule(net, ["observation"], ["logits"]),
            in_keys=["logits"],
            distribution_class=torch.distributions.Categorical,
            distribution_kwargs={"validate_args": False},  # it would look at values
            spec=problem.space,
        )
    size = problem.action.shape[0]
    head = nets.FixedScaleHead(_network(hp, problem, size, 1e-2), size)
    return ProbabilisticActor(
        SafeModule(head, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
    )


def build(hp: Hyper, problem: Problem) -> Agent:
    loss = ClipPPOLoss(
        _actor(hp, problem),
        ValueOperator(_network(hp, problem, 1, 1.0), ["observation"]),
        clip_epsilon=hp.clip_epsilon,
        entropy_bonus=hp.entropy_coeff > 0,
        entropy_coeff=hp.entropy_coeff,
        normalize_advantage=True,
        loss_critic_type="l2",
    )

    def terms(loss: Any, batch: TensorDictBase) -> Mapping[str, Tensor]:
        out = loss(batch)
        names = ("loss_objective", "loss_critic", "loss_entropy", "kl_approx", "clip_fraction")
        return {name: out[name].mean() for name in names if name in out.keys()}  # noqa: SIM118

    groups = tuple(Group((f"{n}_network_params",), hp.lr) for n in ("actor", "critic"))
    phase = Phase("update", terms, groups, clip_norm=hp.clip_norm)

    def middle(loss: LossModule, observed: TensorDict) -> Tensor:
        return _taken(problem, distribution_mode(loss, observed))

    discrete = isinstance(problem.space, Categorical)
    return Agent(loss, (phase,), policy=likeliest if discrete else middle)


def _taken(problem: Problem, action: Tensor) -> Tensor:
    """What the environment takes for actions ``[*batch, a]`` of the policy: the bounds for what
    lies beyond -1 and 1, and the numbers themselves where there are no bounds."""
    low, high = problem.action.low, problem.action.high
    scaled = low + 0.5 * (high - low) * (action.clamp(-1, 1) + 1)
    return torch.where(torch.isfinite(high - low), scaled, action)


def executed(problem: Problem, action: np.ndarray) -> np.ndarray | int:
    if isinstance(problem.space, Categorical):
        return int(action[0])
    return _taken(problem, torch.as_tensor(action)).numpy()


def explore(hp: Hyper, problem: Problem) -> Explore:
    """Samples of the policy; ``"noise"`` is standard normal, or Gumbel's for numbered actions."""
    discrete = isinstance(problem.space, Categorical)

    def act(loss: LossModule, observed: TensorDict) -> Tensor:
        dist: Any = loss.distribution(observed)
        if discrete:
            return (dist.logits + observed["noise"]).argmax(-1)
        return dist.loc + dist.scale * observed["noise"]

    def draw(rng: np.random.Generator, step: int) -> np.ndarray:
        if discrete:
            return rng.gumbel(size=problem.n_actions)
        return rng.standard_normal(problem.action.shape[0])

    return Explore(act, draw)


def judge(loss: LossModule, observed: TensorDict) -> Tensor:
    log_prob = loss.distribution(observed).log_prob(observed["action"])
    value = loss.run_network("critic_network", observed)["state_value"]
    return torch.cat([log_prob.unsqueeze(-1), value], -1)


AGENT = OnPolicy(
    name="ppo",
    paper="Schulman et al. 2017, Proximal Policy Optimization, arXiv:1707.06347, eq. 7",
    hyper=Hyper,
    build=build,
    explore=explore,
    judge=judge,
    executed=executed,
    follow=follow,
)
