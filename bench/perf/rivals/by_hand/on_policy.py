"""Policy gradients on the data of a clone that stands still: what follows the cloning.

Each takes batches, the sizes of an observation and an action, and a device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.perf.rivals.by_hand.parts import (
    GAMMA,
    Batches,
    Learner,
    Loop,
    Policy,
    copy_of,
    gaussian,
    mlp,
    network,
)

# from the logarithm of pi / pi_b, log pi and advantages [batch], and both policies
Objective = Callable[[Tensor, Tensor, Tensor, Policy, Policy], Tensor]


def improve(
    batches: Batches,
    obs: int,
    act: int,
    device: str,
    objective: Objective,
    monte_carlo: bool = False,
) -> Loop:
    """One gradient step on an objective; rewards stand in for returns where they are needed."""

    def policy_net() -> list[Tensor]:
        log_std = torch.zeros(act, device=device, requires_grad=True)
        return [*network(obs, 1024, 1024, act, device=device), log_std]

    actor, clone = Learner(policy_net(), 1e-4), copy_of(policy_net())
    value = copy_of(network(obs, 1024, 1024, 1, device=device))

    def policy(s: Tensor, net: list[Tensor]) -> Policy:
        return mlp(s, net[:-1]).tanh(), net[-1].clamp(-5.0, 2.0)

    def step() -> None:
        s, a, r, after, more = batches()
        with torch.no_grad():
            behavior = policy(s, clone)
            target = r if monte_carlo else r + GAMMA * more * mlp(after, value)
            advantage = (target - mlp(s, value)).squeeze(1)
            advantage = (advantage - advantage.mean()) / advantage.std().clamp(min=1e-6)
        mine = policy(s, actor.net)
        log_prob = gaussian(mine, a)
        ratio = log_prob - gaussian(behavior, a)
        actor.descend(-objective(ratio, log_prob, advantage, mine, behavior).mean())

    return Loop(step, actor.net)


def importance(ratio: Tensor, log_prob: Tensor, advantage: Tensor, *_: Policy) -> Tensor:
    return ratio.exp().clamp(max=2.0) * advantage


def clipped(ratio: Tensor, log_prob: Tensor, advantage: Tensor, *_: Policy) -> Tensor:
    weight = ratio.exp()
    return torch.min(weight * advantage, weight.clamp(0.75, 1.25) * advantage)


def weighted(ratio: Tensor, log_prob: Tensor, advantage: Tensor, *_: Policy) -> Tensor:
    return ratio.detach().exp().clamp(max=2.0) * advantage * log_prob


class Penalised:
    """Its coefficient follows the divergence."""

    def __init__(self) -> None:
        self.beta: Tensor | float = 1.0

    def __call__(
        self, ratio: Tensor, log_prob: Tensor, advantage: Tensor, mine: Policy, behavior: Policy
    ) -> Tensor:
        (loc, log_std), (other, other_log_std) = mine, behavior
        gap = ((other - loc) / log_std.exp()).pow(2) + (2 * (other_log_std - log_std)).exp()
        kl = (0.5 * (gap - 1) + log_std - other_log_std).sum(1)
        objective = ratio.exp() * advantage - self.beta * kl
        mean = kl.detach().mean()
        factor = torch.where(mean > 1.5 * 0.05, 2.0, torch.where(mean < 0.05 / 1.5, 0.5, 1.0))
        self.beta = (self.beta * factor).clamp(1 / 1024, 1024)
        return objective


def kl_ppo(batches: Batches, obs: int, act: int, device: str) -> Loop:
    return improve(batches, obs, act, device, Penalised())


LOOPS = {
    "ppo": partial(improve, objective=importance),
    "clip_ppo": partial(improve, objective=clipped),
    "kl_ppo": kl_ppo,
    "a2c": partial(improve, objective=weighted),
    "reinforce": partial(improve, objective=weighted, monte_carlo=True),
}
