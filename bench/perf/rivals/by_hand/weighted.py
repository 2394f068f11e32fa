"""Updates that imitate the data's actions by their advantages.

Each takes batches, the sizes of an observation and an action, and a device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.perf.rivals.by_hand.parts import (
    STEPS,
    Batches,
    Between,
    Learner,
    Loop,
    copy_of,
    critics,
    follow,
    gaussian,
    goal_of,
    mlp,
    network,
    normed,
    norms,
    relu,
    together,
)


def distance(gap: Tensor, extreme: bool) -> Tensor:
    """What V minimises."""
    if not extreme:
        return torch.where(gap > 0, 0.7, 0.3) * gap.pow(2)
    z = (gap / 2.0).clamp(max=7.0)
    most = z.detach().amax().clamp(min=-1.0)
    return (z - most).exp() - (z + 1) * (-most).exp()


def bellman(q: Tensor, goal: Tensor, extreme: bool) -> Tensor:
    if extreme:
        return F.huber_loss(q, goal.expand_as(q), reduction="none", delta=20.0).mean(1).sum()
    return (q - goal).pow(2).mean(1).sum()


def iql(batches: Batches, obs: int, act: int, device: str, extreme: bool = False) -> Loop:
    """IQL; XQL with ``extreme``, whose V has LayerNorms."""
    layers = network(obs, 256, 256, 1, device=device)
    value = Learner([*layers, *(norms(256, 256, device=device) if extreme else [])])
    critic = Learner(network(obs + act, 256, 256, 1, copies=2, device=device))
    log_std = torch.zeros(act, device=device, requires_grad=True)
    actor = Learner([*network(obs, 256, 256, act, device=device), log_std])
    critic_target = copy_of(critic.net)
    count = 0

    def normed_relu(x: Tensor, i: int) -> Tensor:
        scales = value.net[len(layers) :]
        return normed(x, *scales[2 * i : 2 * i + 2]).relu()

    between: Between = normed_relu if extreme else relu

    def judge(s: Tensor) -> Tensor:
        return mlp(s, value.net[: len(layers)], between).squeeze(1)

    def step() -> None:
        nonlocal count
        s, a, r, after, more = batches()
        with torch.no_grad():
            least = critics(critic_target, s, a).min(0).values
        value.descend(distance(least - judge(s), extreme).mean())
        with torch.no_grad():
            weight = (3.0 * (least - judge(s))).exp().clamp(max=100.0)
            goal = goal_of(r, more, judge(after))
        q_loss = bellman(critics(critic.net, s, a), goal, extreme)
        policy = mlp(s, actor.net[:-1]).tanh(), log_std.clamp(-5.0, 2.0)
        actor.set_rate(1.5e-4 * (1 + math.cos(math.pi * count / STEPS)))
        together(q_loss - (weight * gaussian(policy, a)).mean(), critic, actor)
        follow(critic_target, critic.net)
        count += 1

    return Loop(step, [*value.net, *actor.net, *critic.net], critic_target)


def xql(batches: Batches, obs: int, act: int, device: str) -> Loop:
    return iql(batches, obs, act, device, extreme=True)


def awac(batches: Batches, obs: int, act: int, device: str) -> Loop:
    hidden = (256, 256, 256)
    log_std = torch.zeros(act, device=device, requires_grad=True)
    actor = Learner([*network(obs, *hidden, act, device=device), log_std])
    critic = Learner(network(obs + act, *hidden, 1, copies=2, device=device))
    critic_target = copy_of(critic.net)

    def policy(s: Tensor) -> tuple[Tensor, Tensor]:
        return mlp(s, actor.net[:-1]), log_std.clamp(-20.0, 2.0)

    def sample(found: tuple[Tensor, Tensor]) -> Tensor:
        loc, log_std = found
        return loc + log_std.exp() * torch.randn_like(loc)

    def step() -> None:
        s, a, r, after, more = batches()
        with torch.no_grad():
            best = critics(critic_target, after, sample(policy(after))).min(0).values
            goal = goal_of(r, more, best)
        critic.descend((critics(critic.net, s, a) - goal).pow(2).mean(1).sum())
        found = policy(s)
        with torch.no_grad():
            own = critics(critic.net, s, sample(found)).min(0).values
            advantage = critics(critic.net, s, a).min(0).values - own
            weight = (advantage / 0.3333).exp().clamp(max=100.0)
        actor.descend(-(weight * gaussian(found, a)).mean())
        follow(critic_target, critic.net)

    return Loop(step, [*actor.net, *critic.net], critic_target)


LOOPS = {"iql": iql, "xql": xql, "awac": awac}
