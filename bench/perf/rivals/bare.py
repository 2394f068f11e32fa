"""The same updates written by hand on bare torch: no losses, no modules, no tensordict.

What an engine over readable losses is measured against. Networks, batches, optimizers and the order
of an update are those of the recipes' paper profiles; the numbers come out alike, not equal (the
noise differs). The data is that of :mod:`bench.perf.work`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine import cpu
from bench.perf.protocol import Program, Unavailable, serve
from bench.perf.work import EPISODE, Work, arrays, check_device, program

GAMMA, TAU, STEPS = 0.99, 0.005, 1_000_000
Net = list[Tensor]  # weight, bias, weight, bias, ...


@dataclass
class Loop:
    """A gradient step, the tensors it trains, and those that follow them."""

    step: Callable[[], None]
    weights: list[Tensor]
    targets: list[Tensor] = field(default_factory=list)

    def __call__(self) -> None:
        self.step()


def network(*sizes: int, copies: int = 0, device: str = "cpu") -> Net:
    """Layers with torch's default initial range; ``copies`` adds a leading axis of networks."""
    lead = (copies,) if copies else ()
    tensors = []
    for inputs, outputs in pairwise(sizes):
        bound = inputs**-0.5
        shape = (inputs, outputs) if copies else (outputs, inputs)
        bias = (1, outputs) if copies else (outputs,)
        for size in ((*lead, *shape), (*lead, *bias)):
            t = torch.empty(size, device=device).uniform_(-bound, bound)
            tensors.append(t.requires_grad_())
    return tensors


def mlp(x: Tensor, net: Sequence[Tensor]) -> Tensor:
    """``[batch, in]`` through one network; ``[copies, batch, in]`` through stacked ones."""
    for i in range(0, len(net), 2):
        w, b = net[i], net[i + 1]
        x = torch.baddbmm(b, x, w) if w.ndim == 3 else F.linear(x, w, b)
        if i + 2 < len(net):
            x = x.relu()
    return x


def critics(net: Net, observation: Tensor, action: Tensor) -> Tensor:
    """``[copies, batch]``."""
    pair = torch.cat([observation, action], -1)
    return mlp(pair.expand(len(net[0]), *pair.shape), net).squeeze(-1)


def copy_of(net: Net) -> Net:
    return [t.detach().clone() for t in net]


class Learner:
    """A network's parameters with their optimizer."""

    def __init__(self, net: Net, lr: float = 3e-4) -> None:
        self.net = net
        self.adam = torch.optim.Adam(net, lr=lr, fused=True)

    def apply(self, grads: Sequence[Tensor]) -> None:
        for p, g in zip(self.net, grads, strict=True):
            p.grad = g
        self.adam.step()

    def descend(self, loss: Tensor) -> None:
        self.apply(torch.autograd.grad(loss, self.net))

    def set_rate(self, lr: float) -> None:
        self.adam.param_groups[0]["lr"] = lr


def together(loss: Tensor, *learners: Learner) -> None:
    """One backward pass for several learners."""
    grads = iter(torch.autograd.grad(loss, [t for one in learners for t in one.net]))
    for one in learners:
        one.apply([next(grads) for _ in one.net])


def follow(target: Net, net: Net) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(target, net, TAU)


class Batches:
    """Rows ``(s, a, r, s', not terminated)`` of one packed tensor."""

    def __init__(self, data: Tensor, observation: int, action: int, size: int = 256) -> None:
        self.data, self.size = data, size
        self.widths = [observation, action, 1, observation, 1]

    def __call__(self) -> tuple[Tensor, ...]:
        index = torch.randint(len(self.data), (self.size,), device=self.data.device)
        return self.data.index_select(0, index).split(self.widths, 1)


def bc(data: Tensor, obs: int, act: int) -> Loop:
    batches = Batches(data, obs, act)
    actor = Learner(network(obs, 256, 256, act, device=str(data.device)))

    def step() -> None:
        s, a, *_ = batches()
        actor.descend((mlp(s, actor.net).tanh() - a).pow(2).mean())

    return Loop(step, actor.net)


def td3_bc(data: Tensor, obs: int, act: int) -> Loop:
    batches, device = Batches(data, obs, act), str(data.device)
    actor = Learner(network(obs, 256, 256, act, device=device))
    critic = Learner(network(obs + act, 256, 256, 1, copies=2, device=device))
    actor_target, critic_target = copy_of(actor.net), copy_of(critic.net)
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        s, a, r, after, more = batches()
        with torch.no_grad():
            noise = (torch.randn_like(a) * 0.2).clamp(-0.5, 0.5)
            next_action = (mlp(after, actor_target).tanh() + noise).clamp(-1, 1)
            best = critics(critic_target, after, next_action).min(0).values
            goal = r.squeeze(1) + GAMMA * more.squeeze(1) * best
        q = critics(critic.net, s, a)
        critic.descend((q - goal).pow(2).mean(1).sum())
        if count % 2 == 0:
            chosen = mlp(s, actor.net).tanh()
            q = mlp(torch.cat([s, chosen], 1), [t[0] for t in detached(critic.net, linear=True)])
            weight = 2.5 / q.abs().mean().detach()
            actor.descend((chosen - a).pow(2).mean() - weight * q.mean())
            follow([*critic_target, *actor_target], [*critic.net, *actor.net])

    return Loop(step, [*actor.net, *critic.net], [*actor_target, *critic_target])


def detached(net: Net, linear: bool = False) -> Net:
    """Without gradient; ``linear`` turns the layout of stacked layers into that of F.linear."""
    out = [t.detach() for t in net]
    if linear:
        out = [t.transpose(1, 2) if i % 2 == 0 else t.squeeze(1) for i, t in enumerate(out)]
    return out


def iql(data: Tensor, obs: int, act: int) -> Loop:
    batches, device = Batches(data, obs, act), str(data.device)
    value = Learner(network(obs, 256, 256, 1, device=device))
    critic = Learner(network(obs + act, 256, 256, 1, copies=2, device=device))
    log_std = torch.zeros(act, device=device, requires_grad=True)
    actor = Learner([*network(obs, 256, 256, act, device=device), log_std])
    critic_target = copy_of(critic.net)
    count = 0

    def step() -> None:
        nonlocal count
        s, a, r, after, more = batches()
        with torch.no_grad():
            least = critics(critic_target, s, a).min(0).values
        gap = least - mlp(s, value.net).squeeze(1)
        value.descend((torch.where(gap > 0, 0.7, 0.3) * gap.pow(2)).mean())
        with torch.no_grad():
            weight = (3.0 * (least - mlp(s, value.net).squeeze(1))).exp().clamp(max=100.0)
            goal = r.squeeze(1) + GAMMA * (more * mlp(after, value.net)).squeeze(1)
        q = critics(critic.net, s, a)
        loc = mlp(s, actor.net[:-1]).tanh()
        scale = log_std.clamp(-5.0, 2.0)
        density = -0.5 * ((a - loc) / scale.exp()).pow(2) - scale - 0.5 * math.log(2 * math.pi)
        q_loss = (q - goal).pow(2).mean(1).sum()
        actor.set_rate(1.5e-4 * (1 + math.cos(math.pi * count / STEPS)))
        together(q_loss - (weight * density.sum(1)).mean(), critic, actor)
        follow(critic_target, critic.net)
        count += 1

    return Loop(step, [*value.net, *actor.net, *critic.net], critic_target)


Policy = tuple[Tensor, Tensor]  # location and log standard deviation


def policy(s: Tensor, net: Net) -> Policy:
    loc, log_std = mlp(s, net).chunk(2, 1)
    return loc, log_std.clamp(-20.0, 2.0)


def draw(policy: Policy, n: int = 0) -> tuple[Tensor, Tensor]:
    """``n`` actions of a Gaussian under tanh (0: one, no axis) and their log-densities."""
    loc, log_std = policy
    noise = torch.randn((n, *loc.shape) if n else loc.shape, device=loc.device)
    raw = loc + log_std.exp() * noise
    density = -0.5 * noise.pow(2) - log_std - 0.5 * math.log(2 * math.pi)
    squashed = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
    return raw.tanh(), (density - squashed).sum(-1)


def sac(data: Tensor, obs: int, act: int) -> Loop:
    batches, device = Batches(data, obs, act), str(data.device)
    log_alpha = torch.zeros((), device=device, requires_grad=True)
    actor = Learner([*network(obs, 256, 256, 2 * act, device=device), log_alpha])
    critic = Learner(network(obs + act, 256, 256, 1, copies=2, device=device))
    critic_target = copy_of(critic.net)

    def step() -> None:
        s, a, r, after, more = batches()
        alpha = log_alpha.exp().detach()
        with torch.no_grad():
            next_action, log_prob = draw(policy(after, actor.net[:-1]))
            best = critics(critic_target, after, next_action).min(0).values - alpha * log_prob
            goal = r.squeeze(1) + GAMMA * more.squeeze(1) * best
        critic.descend((critics(critic.net, s, a) - goal).pow(2).mean(1).sum())
        follow(critic_target, critic.net)
        chosen, log_prob = draw(policy(s, actor.net[:-1]))
        judged = critics(detached(critic.net), s, chosen).min(0).values
        alpha_loss = log_alpha * (log_prob.detach() - act).mean()
        actor.descend((alpha * log_prob - judged).mean() - alpha_loss)

    return Loop(step, [*actor.net, *critic.net], critic_target)


def cql(data: Tensor, obs: int, act: int, samples: int = 10) -> Loop:
    batches, device = Batches(data, obs, act), str(data.device)
    hidden = (256, 256, 256)
    log_alpha = torch.zeros((), device=device, requires_grad=True)
    actor = Learner([*network(obs, *hidden, 2 * act, device=device), log_alpha], 3e-5)
    critic = Learner(network(obs + act, *hidden, 1, copies=2, device=device))
    critic_target = copy_of(critic.net)

    def step() -> None:
        s, a, r, after, more = batches()
        alpha = log_alpha.exp().detach()
        here = policy(s, actor.net[:-1])
        chosen, log_prob = draw(here)
        with torch.no_grad():
            there = policy(after, actor.net[:-1])
            best = critics(critic_target, after, draw(there)[0]).min(0).values
            goal = r.squeeze(1) + GAMMA * more.squeeze(1) * best
            uniform = torch.rand(samples, *a.shape, device=device) * 2 - 1
            mine, mine_lp = draw(here, samples)
            others, others_lp = draw(there, samples)
            flat = mine_lp.new_full(mine_lp.shape, -act * math.log(2))
            density = torch.cat([flat, mine_lp, others_lp])
            actions = torch.cat([uniform, mine, others, a.unsqueeze(0)])
        rows = s.expand(len(actions), *s.shape).reshape(-1, obs)
        q = critics(critic.net, rows, actions.reshape(-1, act)).reshape(2, len(actions), -1)
        gap = (q[:, :-1] - density).logsumexp(1) - q[:, -1]
        q_loss = (q[:, -1] - goal).pow(2).mean(1).sum() + 10.0 * gap.mean(1).sum()
        judged = critics(detached(critic.net), s, chosen).min(0).values
        actor_loss = (alpha * log_prob - judged).mean()
        alpha_loss = log_alpha * (log_prob.detach() - act).mean()
        together(q_loss + actor_loss - alpha_loss, critic, actor)
        follow(critic_target, critic.net)

    return Loop(step, [*actor.net, *critic.net], critic_target)


def dt(data: Tensor, obs: int, act: int, width: int = 128, length: int = 20) -> Loop:
    """Windows of consecutive rows ``(s, a, return-to-go)``, padded with zeros at an episode's end:
    later tokens are never seen, so that the loss alone needs the mask."""
    device = str(data.device)
    layers, rate, batch = 3, 0.1, 64
    embed = [network(n, width, device=device) for n in (1, obs, act)]
    time = torch.randn(1001, width, device=device).mul_(0.02).requires_grad_()
    norms = [
        [torch.full((width,), start, device=device, requires_grad=True) for start in (1.0, 0.0)]
        for _ in range(2 * layers + 2)
    ]
    shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    blocks = [[network(*shape, device=device) for shape in shapes] for _ in range(layers)]
    head = network(width, act, device=device)
    nets = [*embed, [time], *norms, *(p for b in blocks for p in b), head]
    params = [t for net in nets for t in net]
    adam = torch.optim.AdamW(params, lr=1e-4, weight_decay=1e-4, fused=True)
    offsets = torch.arange(length, device=device)
    columns = [obs, act, 1]
    data = data[:, : sum(columns)].contiguous()
    count = 0

    def norm(x: Tensor, i: int) -> Tensor:
        weight, bias = norms[i]
        return F.layer_norm(x, (width,), weight, bias)

    def drop(x: Tensor) -> Tensor:
        return F.dropout(x, rate, True)

    def block(x: Tensor, i: int) -> Tensor:
        qkv, out, up, down = blocks[i]
        q, k, v = F.linear(norm(x, 2 * i + 1), *qkv).unsqueeze(1).chunk(3, -1)
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True).squeeze(1)
        x = x + drop(F.linear(seen, *out))
        inner = F.linear(norm(x, 2 * i + 2), *up).relu()
        return x + drop(F.linear(inner, *down))

    def step() -> None:
        nonlocal count
        first = torch.randint(len(data), (batch, 1), device=device)
        end = (first // EPISODE + 1) * EPISODE
        rows = first + offsets
        inside = rows < end
        rows = torch.minimum(rows, end - 1)
        found = data.index_select(0, rows.reshape(-1)).reshape(batch, length, -1)
        s, a, to_go = (found * inside.unsqueeze(-1)).split(columns, -1)
        when = F.embedding(rows % EPISODE * inside, time)
        parts = [F.linear(x, *net) + when for x, net in zip((to_go, s, a), embed, strict=True)]
        x = drop(norm(torch.stack(parts, 2).flatten(1, 2), 0))
        for i in range(layers):
            x = block(x, i)
        x = norm(x, 2 * layers + 1).unflatten(1, (length, 3))[:, :, 1]
        error = (F.linear(x, *head).tanh() - a).pow(2).mean(-1)
        grads = torch.autograd.grad((error * inside).sum() / inside.sum(), params)
        total = torch.stack([g.norm() for g in grads]).norm()
        torch._foreach_mul_(grads, (0.25 / (total + 1e-6)).clamp(max=1.0))
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        adam.param_groups[0]["lr"] = 1e-4 * min(1.0, (count + 1) / 10_000)
        adam.step()
        count += 1

    return Loop(step, params)


LOOPS = {"bc": bc, "td3_bc": td3_bc, "iql": iql, "sac": sac, "cql": cql, "dt": dt}


def packed(work: Work) -> Tensor:
    found = arrays(work)
    columns = [found[k] for k in ("observation", "action", "reward", "after")]
    return torch.cat([*columns, torch.ones(work.rows, 1)], 1).to(work.device)  # no row terminates


def build(request: dict[str, Any]) -> Program:
    work = Work(**request)
    work.only_one_seed()
    check_device(work.device)
    if work.algorithm not in LOOPS:
        raise Unavailable(f"no loop for {work.algorithm} is written by hand")
    if work.device == "cpu":
        cpu.prepare()
    loop = LOOPS[work.algorithm](packed(work), work.observation, work.action)
    return program(work, loop.step, lambda: loop.weights, ())


if __name__ == "__main__":
    sys.exit(serve(build))
