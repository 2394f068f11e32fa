"""Updates for numbered actions.

Each takes batches, the size of an observation, how many actions there are, and a device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.perf.rivals.by_hand.parts import (
    GAMMA,
    Batches,
    Learner,
    Loop,
    Net,
    copy_of,
    critics,
    follow,
    goal_of,
    mlp,
    network,
)


def taken(values: Tensor, action: Tensor) -> Tensor:
    """Of values ``[..., batch, n]`` those of the actions ``[batch, 1]``: ``[..., batch]``."""
    index = action.long().expand(*values.shape[:-1], 1)
    return values.gather(-1, index).squeeze(-1)


def dqn(batches: Batches, obs: int, n: int, device: str) -> Loop:
    value = Learner(network(obs, 120, 84, n, device=device), 2.5e-4)
    target = copy_of(value.net)

    def step() -> None:
        s, a, r, after, more = batches()
        with torch.no_grad():
            goal = goal_of(r, more, mlp(after, target).amax(1))
        value.descend(F.smooth_l1_loss(taken(mlp(s, value.net), a), goal))
        follow(target, value.net)

    return Loop(step, value.net, target)


def discrete_cql(batches: Batches, obs: int, n: int, device: str) -> Loop:
    value = Learner(network(obs, 256, 256, n, device=device))
    target = copy_of(value.net)

    def step() -> None:
        s, a, r, after, more = batches()
        with torch.no_grad():
            goal = goal_of(r, more, mlp(after, target).amax(1))
        q = mlp(s, value.net)
        chosen = taken(q, a)
        value.descend(0.5 * (chosen - goal).pow(2).mean() + (q.logsumexp(1) - chosen).mean())
        follow(target, value.net)

    return Loop(step, value.net, target)


def c51(batches: Batches, obs: int, n: int, device: str) -> Loop:
    atoms, low, high = 101, -100.0, 100.0
    support = torch.linspace(low, high, atoms, device=device)
    value = Learner(network(obs, 120, 84, atoms * n, device=device), 2.5e-4)
    target = copy_of(value.net)

    def log_probs(s: Tensor, net: Net) -> Tensor:
        """``[batch, n, atoms]``."""
        return mlp(s, net).unflatten(1, (atoms, n)).log_softmax(1).transpose(1, 2)

    def chosen(found: Tensor, action: Tensor) -> Tensor:
        return found.gather(1, action.long().unsqueeze(2).expand(-1, 1, atoms)).squeeze(1)

    def projected(probs: Tensor, returns: Tensor) -> Tensor:
        place = (returns - low) / (high - low) * (atoms - 1)
        place = place.clamp(0, atoms - 1)
        below = place.floor().clamp(max=atoms - 2)
        above = place - below
        found = torch.zeros_like(probs).scatter_add_(1, below.long(), probs * (1 - above))
        return found.scatter_add_(1, below.long() + 1, probs * above)

    def step() -> None:
        s, a, r, after, more = batches()
        with torch.no_grad():
            best = (log_probs(after, value.net).exp() @ support).argmax(1, keepdim=True)
            probs = chosen(log_probs(after, target), best).exp()
            goal = projected(probs, r + GAMMA * more * support)
        value.descend(-(goal * chosen(log_probs(s, value.net), a)).sum(1).mean())
        follow(target, value.net)

    return Loop(step, value.net, target)


def discrete_iql(batches: Batches, obs: int, n: int, device: str) -> Loop:
    value = Learner(network(obs, 256, 256, 1, device=device))
    critic = Learner(network(obs, 256, 256, n, copies=2, device=device))
    actor = Learner(network(obs, 256, 256, n, device=device))
    critic_target = copy_of(critic.net)

    def step() -> None:
        s, a, r, after, more = batches()
        with torch.no_grad():
            least = taken(critics(critic_target, s), a).min(0).values
        gap = least - mlp(s, value.net).squeeze(1)
        value.descend((torch.where(gap > 0, 0.8, 0.2) * gap.pow(2)).mean())
        with torch.no_grad():
            weight = (3.0 * (least - mlp(s, value.net).squeeze(1))).exp().clamp(max=100.0)
            goal = goal_of(r, more, mlp(after, value.net).squeeze(1))
        q_loss = (taken(critics(critic.net, s), a) - goal).pow(2).mean(1).sum()
        log_prob = taken(mlp(s, actor.net).log_softmax(1), a)
        critic.descend(q_loss)
        actor.descend(-(weight * log_prob).mean())
        follow(critic_target, critic.net)

    return Loop(step, [*value.net, *actor.net, *critic.net], critic_target)


def discrete_sac(batches: Batches, obs: int, n: int, device: str) -> Loop:
    log_alpha = torch.zeros((), device=device, requires_grad=True)
    actor = Learner([*network(obs, 256, 256, n, device=device), log_alpha])
    critic = Learner(network(obs, 256, 256, n, copies=2, device=device))
    critic_target = copy_of(critic.net)
    entropy = 0.98 * torch.tensor(float(n)).log().item()

    def step() -> None:
        s, a, r, after, more = batches()
        alpha = log_alpha.exp().detach()
        with torch.no_grad():
            log_prob = mlp(after, actor.net[:-1]).log_softmax(1)
            least = critics(critic_target, after).min(0).values
            goal = goal_of(r, more, (log_prob.exp() * (least - alpha * log_prob)).sum(1))
        critic.descend((taken(critics(critic.net, s), a) - goal).pow(2).mean(1).sum())
        follow(critic_target, critic.net)
        log_prob = mlp(s, actor.net[:-1]).log_softmax(1)
        prob = log_prob.exp()
        with torch.no_grad():
            least = critics(critic.net, s).min(0).values
        loss = (prob * (alpha * log_prob - least)).sum(1).mean()
        gap = ((prob * log_prob).sum(1).detach() + entropy).mean()
        actor.descend(loss - log_alpha * gap)

    return Loop(step, [*actor.net, *critic.net], critic_target)


def qmix(batches: Batches, obs: int, n: int, device: str) -> Loop:
    """Two agents, each of 5 numbers and 2 actions, under a state of 3."""
    agents, own, state, choices, width = 2, 5, 3, 2, 32
    local = network(own, 64, choices, device=device)
    shapes = ((state, agents * width), (state, width), (state, width), (state, width, 1))
    mixing = [network(*shape, device=device) for shape in shapes]
    everything = Learner([*local, *(t for net in mixing for t in net)], 5e-4)
    target = copy_of(everything.net)

    def values(net: Net, s: Tensor) -> Tensor:
        """``[batch, agents, choices]``."""
        return mlp(s[:, : agents * own].unflatten(1, (agents, own)), net[:4])

    def mixed(net: Net, q: Tensor, s: Tensor) -> Tensor:
        """``[batch]`` of the agents' ``[batch, agents]``."""
        s = s[:, agents * own :]
        weight, final, bias = (F.linear(s, *net[i : i + 2]) for i in (4, 6, 8))
        hidden = (q.unsqueeze(1) @ weight.abs().unflatten(1, (agents, width))).squeeze(1)
        return ((hidden + bias).relu() * final.abs()).sum(1) + mlp(s, net[10:]).squeeze(1)

    def step() -> None:
        s, a, r, after, more = batches()
        joint = a.long()
        action = torch.cat([joint // choices, joint % choices], 1).unsqueeze(2)
        with torch.no_grad():
            goal = goal_of(r, more, mixed(target, values(target, after).amax(2), after))
        chosen = values(everything.net, s).gather(2, action).squeeze(2)
        everything.descend((mixed(everything.net, chosen, s) - goal).pow(2).mean())
        follow(target, everything.net)

    return Loop(step, everything.net, target)


LOOPS = {
    "dqn": dqn,
    "c51": c51,
    "discrete_cql": discrete_cql,
    "discrete_iql": discrete_iql,
    "discrete_sac": discrete_sac,
    "qmix": qmix,
}
