"""Updates of policies with an entropy bonus.

Each takes batches, the sizes of an observation and an action, and a device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.perf.rivals.by_hand.parts import (
    Batches,
    Learner,
    Loop,
    Net,
    copy_of,
    critics,
    detached,
    draw,
    follow,
    goal_of,
    mlp,
    network,
    squashed,
    together,
)


def soft(obs: int, act: int, device: str, depth: int, critics_: int, lr: float = 3e-4) -> tuple:
    """Actor with its temperature, critics and their targets."""
    hidden = (256,) * depth
    log_alpha = torch.zeros((), device=device, requires_grad=True)
    actor = Learner([*network(obs, *hidden, 2 * act, device=device), log_alpha], lr)
    critic = Learner(network(obs + act, *hidden, 1, copies=critics_, device=device))
    return actor, log_alpha, critic, copy_of(critic.net)


def sac(batches: Batches, obs: int, act: int, device: str) -> Loop:
    actor, log_alpha, critic, critic_target = soft(obs, act, device, 2, 2)

    def step() -> None:
        s, a, r, after, more = batches()
        alpha = log_alpha.exp().detach()
        with torch.no_grad():
            next_action, log_prob = draw(squashed(after, actor.net[:-1]))
            best = critics(critic_target, after, next_action).min(0).values - alpha * log_prob
            goal = goal_of(r, more, best)
        critic.descend((critics(critic.net, s, a) - goal).pow(2).mean(1).sum())
        follow(critic_target, critic.net)
        chosen, log_prob = draw(squashed(s, actor.net[:-1]))
        judged = critics(detached(critic.net), s, chosen).min(0).values
        alpha_loss = log_alpha * (log_prob.detach() - act).mean()
        actor.descend((alpha * log_prob - judged).mean() - alpha_loss)

    return Loop(step, [*actor.net, *critic.net], critic_target)


def sac_n(batches: Batches, obs: int, act: int, device: str, diverse: bool = False) -> Loop:
    """SAC-N; EDAC with ``diverse``."""
    n = 10
    actor, log_alpha, critic, critic_target = soft(obs, act, device, 3, n)

    def likeness(s: Tensor, a: Tensor) -> Tensor:
        """How alike the critics' gradients with respect to the action are."""
        actions = a.expand(n, *a.shape).detach().requires_grad_()
        q = mlp(torch.cat([s.expand(n, *s.shape), actions], 2), critic.net)
        (up,) = torch.autograd.grad(q.sum(), [actions], create_graph=True)
        up = (up / (up.norm(dim=2, keepdim=True) + 1e-10)).transpose(0, 1)
        alike = up @ up.transpose(1, 2)
        return (alike.sum((1, 2)) - alike.diagonal(0, 1, 2).sum(1)).mean() / (n - 1)

    def step() -> None:
        s, a, r, after, more = batches()
        alpha = log_alpha.exp().detach()
        chosen, log_prob = draw(squashed(s, actor.net[:-1], -5.0))
        judged = critics(detached(critic.net), s, chosen).min(0).values
        alpha_loss = log_alpha * (log_prob.detach() - act).mean()
        actor.descend((alpha * log_prob - judged).mean() - alpha_loss)
        alpha = log_alpha.exp().detach()
        with torch.no_grad():
            next_action, log_prob = draw(squashed(after, actor.net[:-1], -5.0))
            best = critics(critic_target, after, next_action).min(0).values - alpha * log_prob
            goal = goal_of(r, more, best)
        loss = (critics(critic.net, s, a) - goal).pow(2).mean(1).sum()
        critic.descend(loss + likeness(s, a) if diverse else loss)
        follow(critic_target, critic.net)

    return Loop(step, [*actor.net, *critic.net], critic_target)


def edac(batches: Batches, obs: int, act: int, device: str) -> Loop:
    return sac_n(batches, obs, act, device, diverse=True)


def redq(batches: Batches, obs: int, act: int, device: str) -> Loop:
    n = 10
    actor, log_alpha, critic, critic_target = soft(obs, act, device, 2, n)

    def step() -> None:
        s, a, r, after, more = batches()
        alpha = log_alpha.exp().detach()
        chosen, log_prob = draw(squashed(s, actor.net[:-1]))
        with torch.no_grad():
            next_action, next_log_prob = draw(squashed(after, actor.net[:-1]))
            some = torch.randperm(n, device=device)[:2]
            members = [t.index_select(0, some) for t in critic_target]
            best = critics(members, after, next_action).min(0).values - alpha * next_log_prob
            goal = goal_of(r, more, best)
        q_loss = (critics(critic.net, s, a) - goal).pow(2).mean(1).sum()
        judged = critics(detached(critic.net), s, chosen).mean(0)
        both = torch.cat([log_prob.detach(), next_log_prob])
        alpha_loss = log_alpha * (both - act).mean()
        together(q_loss + (alpha * log_prob - judged).mean() - alpha_loss, critic, actor)
        follow(critic_target, critic.net)

    return Loop(step, [*actor.net, *critic.net], critic_target)


def judge(net: Net, s: Tensor, actions: Tensor) -> Tensor:
    """Of actions ``[n, batch, a]``: ``[critics, n, batch]``."""
    rows = s.expand(len(actions), *s.shape).flatten(0, 1)
    return critics(net, rows, actions.flatten(0, 1)).unflatten(1, (len(actions), -1))


def cql(batches: Batches, obs: int, act: int, device: str, calibrated: bool = False) -> Loop:
    """CQL; Cal-QL with ``calibrated``, which bootstraps from the best of several actions. The
    rewards stand in for its returns."""
    samples, weight = 10, 5.0 if calibrated else 10.0
    actor, log_alpha, critic, critic_target = soft(
        obs, act, device, 3, 2, 1e-4 if calibrated else 3e-5
    )

    def next_value(after: Tensor, there: tuple[Tensor, Tensor]) -> Tensor:
        if calibrated:
            return judge(critic_target, after, draw(there, samples)[0]).min(0).values.amax(0)
        return critics(critic_target, after, draw(there)[0]).min(0).values

    def step() -> None:
        s, a, r, after, more = batches()
        alpha = log_alpha.exp().detach()
        here = squashed(s, actor.net[:-1])
        chosen, log_prob = draw(here)
        with torch.no_grad():
            there = squashed(after, actor.net[:-1])
            goal = goal_of(r, more, next_value(after, there))
            uniform = torch.rand(samples, *a.shape, device=device) * 2 - 1
            mine, mine_lp = draw(here, samples)
            others, others_lp = draw(there, samples)
            flat = mine_lp.new_full(mine_lp.shape, -act * math.log(2))
            density = torch.cat([flat, mine_lp, others_lp])
            actions = torch.cat([uniform, mine, others, a.unsqueeze(0)])
        q = judge(critic.net, s, actions)
        data, sampled = q[:, -1], q[:, :-1]
        if calibrated:
            bounded = sampled[:, samples:].maximum(r.squeeze(1))
            sampled = torch.cat([sampled[:, :samples], bounded], 1)
        gap = (sampled - density).logsumexp(1) - data
        q_loss = (data - goal).pow(2).mean(1).sum() + weight * gap.mean(1).sum()
        judged = critics(detached(critic.net), s, chosen).min(0).values
        actor_loss = (alpha * log_prob - judged).mean()
        alpha_loss = log_alpha * (log_prob.detach() - act).mean()
        together(q_loss + actor_loss - alpha_loss, critic, actor)
        follow(critic_target, critic.net)

    return Loop(step, [*actor.net, *critic.net], critic_target)


def cal_ql(batches: Batches, obs: int, act: int, device: str) -> Loop:
    return cql(batches, obs, act, device, calibrated=True)


LOOPS = {"sac": sac, "sac_n": sac_n, "edac": edac, "redq": redq, "cql": cql, "cal_ql": cal_ql}
