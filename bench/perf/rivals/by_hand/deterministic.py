"""Updates of deterministic policies.

Each takes batches, the sizes of an observation and an action, and a device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.perf.rivals.by_hand.parts import (
    GAMMA,
    Batches,
    Learner,
    Loop,
    Net,
    copy_of,
    critics,
    detached,
    follow,
    goal_of,
    mlp,
    network,
    normed,
    norms,
    together,
)


def bc(batches: Batches, obs: int, act: int, device: str) -> Loop:
    actor = Learner(network(obs, 256, 256, act, device=device))

    def step() -> None:
        s, a, *_ = batches()
        actor.descend((mlp(s, actor.net).tanh() - a).pow(2).mean())

    return Loop(step, actor.net)


def smoothed(after: Tensor, actor: Net) -> Tensor:
    action = mlp(after, actor).tanh()
    noise = (torch.randn_like(action) * 0.2).clamp(-0.5, 0.5)
    return (action + noise).clamp(-1, 1)


def td3(batches: Batches, obs: int, act: int, device: str, cloning: bool = False) -> Loop:
    """TD3; TD3+BC with ``cloning``."""
    actor = Learner(network(obs, 256, 256, act, device=device))
    critic = Learner(network(obs + act, 256, 256, 1, copies=2, device=device))
    actor_target, critic_target = copy_of(actor.net), copy_of(critic.net)
    count = 0

    def improve(s: Tensor, a: Tensor) -> None:
        chosen = mlp(s, actor.net).tanh()
        q = mlp(torch.cat([s, chosen], 1), [t[0] for t in detached(critic.net, linear=True)])
        if cloning:
            weight = 2.5 / q.abs().mean().detach()
            actor.descend((chosen - a).pow(2).mean() - weight * q.mean())
        else:
            actor.descend(-q.mean())

    def step() -> None:
        nonlocal count
        count += 1
        s, a, r, after, more = batches()
        with torch.no_grad():
            best = critics(critic_target, after, smoothed(after, actor_target)).min(0).values
            goal = goal_of(r, more, best)
        critic.descend((critics(critic.net, s, a) - goal).pow(2).mean(1).sum())
        if count % 2 == 0:
            improve(s, a)
            follow([*critic_target, *actor_target], [*critic.net, *actor.net])

    return Loop(step, [*actor.net, *critic.net], [*actor_target, *critic_target])


def td3_bc(batches: Batches, obs: int, act: int, device: str) -> Loop:
    return td3(batches, obs, act, device, cloning=True)


def rebrac(batches: Batches, obs: int, act: int, device: str) -> Loop:
    hidden = (256, 256, 256)
    actor = Learner(network(obs, *hidden, act, device=device))
    layers = network(obs + act, *hidden, 1, copies=2, device=device)
    critic = Learner([*layers, *norms(*hidden, copies=2, device=device)])
    actor_target, critic_target = copy_of(actor.net), copy_of(critic.net)
    count = 0

    def judge(net: Net, s: Tensor, a: Tensor) -> Tensor:
        scales = net[len(layers) :]

        def between(x: Tensor, i: int) -> Tensor:
            return normed(x.relu(), *scales[2 * i : 2 * i + 2])

        return critics(net[: len(layers)], s, a, between)

    def step() -> None:
        nonlocal count
        count += 1
        s, a, r, after, more, next_action = batches()
        with torch.no_grad():
            chosen = smoothed(after, actor_target)
            penalty = (chosen - next_action).pow(2).sum(1)
            best = judge(critic_target, after, chosen).min(0).values - 0.01 * penalty
            goal = goal_of(r, more, best)
        critic.descend((judge(critic.net, s, a) - goal).pow(2).mean(1).sum())
        if count % 2 == 0:
            chosen = mlp(s, actor.net).tanh()
            least = judge(detached(critic.net), s, chosen).min(0).values
            weight = 1 / least.abs().mean().detach()
            penalty = (chosen - a).pow(2).sum(1)
            actor.descend((0.01 * penalty - weight * least).mean())
            follow([*critic_target, *actor_target], [*critic.net, *actor.net])

    return Loop(step, [*actor.net, *critic.net], [*actor_target, *critic_target])


def ddpg(batches: Batches, obs: int, act: int, device: str) -> Loop:
    actor = Learner(network(obs, 400, 300, act, device=device), 1e-4)
    critic = Learner(network(obs + act, 400, 300, 1, device=device), 1e-3, weight_decay=1e-2)
    actor_target, critic_target = copy_of(actor.net), copy_of(critic.net)

    def step() -> None:
        s, a, r, after, more = batches()
        with torch.no_grad():
            next_pair = torch.cat([after, mlp(after, actor_target).tanh()], 1)
            goal = r + GAMMA * more * mlp(next_pair, critic_target)
        q = mlp(torch.cat([s, a], 1), critic.net)
        chosen = torch.cat([s, mlp(s, actor.net).tanh()], 1)
        climbed = mlp(chosen, detached(critic.net))
        together((q - goal).pow(2).mean() - climbed.mean(), critic, actor)
        follow([*critic_target, *actor_target], [*critic.net, *actor.net], 1e-3)

    return Loop(step, [*actor.net, *critic.net], [*actor_target, *critic_target])


LOOPS = {"bc": bc, "td3": td3, "td3_bc": td3_bc, "rebrac": rebrac, "ddpg": ddpg, "bc10": bc}
