"""Updates on windows of consecutive steps.

Each takes batches, of which it reads the rows ``(s, a, return-to-go)`` in their order, the sizes of
an observation and an action, and a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.perf.rivals.by_hand.parts import Batches, Loop, Net, draw, network, norms
from bench.perf.work import EPISODE

WINDOW, RATE = 20, 0.1
Sample = Callable[[], tuple[Tensor, ...]]


def drop(x: Tensor) -> Tensor:
    return F.dropout(x, RATE, True)


def windows(batches: Batches, obs: int, act: int) -> Sample:
    """(s, a, return-to-go, which steps count, time of each), padded with zeros at an episode's end:
    later tokens are never seen, so that the loss alone needs the mask."""
    columns = [obs, act, 1]
    data, batch = batches.data[:, : sum(columns)].contiguous(), batches.size
    offsets = torch.arange(WINDOW, device=data.device)

    def sample() -> tuple[Tensor, ...]:
        first = torch.randint(len(data), (batch, 1), device=data.device)
        end = (first // EPISODE + 1) * EPISODE
        rows = first + offsets
        inside = rows < end
        rows = torch.minimum(rows, end - 1)
        found = data.index_select(0, rows.reshape(-1)).reshape(batch, WINDOW, -1)
        parts = (found * inside.unsqueeze(-1)).split(columns, -1)
        return *parts, inside, rows % EPISODE * inside

    return sample


class Transformer:
    """GPT-2's blocks over (return-to-go, observation, action) tokens."""

    def __init__(self, obs: int, act: int, width: int, layers: int, heads: int, device: str):
        self.width, self.heads = width, heads
        shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
        self.embed = [network(n, width, device=device) for n in (1, obs, act)]
        self.norms = norms(*[width] * (2 * layers + 2), device=device)
        self.blocks = [[network(*s, device=device) for s in shapes] for _ in range(layers)]
        nets = [*self.embed, self.norms, *(net for block in self.blocks for net in block)]
        self.weights = [t for net in nets for t in net]

    def norm(self, x: Tensor, i: int) -> Tensor:
        weight, bias = self.norms[2 * i : 2 * i + 2]
        return F.layer_norm(x, (self.width,), weight, bias)

    def attend(self, x: Tensor, qkv: Net, out: Net) -> Tensor:
        parts = F.linear(x, *qkv).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=RATE, is_causal=True)
        return F.linear(seen.transpose(1, 2).flatten(2), *out)

    def __call__(self, parts: list[Tensor], place: Tensor | None = None) -> Tensor:
        """Hidden states of the observations, ``[batch, window, width]``; ``place`` is added to the
        tokens behind their norm."""
        x = self.norm(torch.stack(parts, 2).flatten(1, 2), 0)
        x = drop(x if place is None else x + place)
        for i, (qkv, out, up, down) in enumerate(self.blocks):
            x = x + drop(self.attend(self.norm(x, 2 * i + 1), qkv, out))
            inner = F.linear(self.norm(x, 2 * i + 2), *up).relu()
            x = x + drop(F.linear(inner, *down))
        return self.norm(x, 2 * len(self.blocks) + 1).unflatten(1, (WINDOW, 3))[:, :, 1]


class Trained:
    """AdamW under a warm-up, with clipped gradients."""

    def __init__(self, weights: list[Tensor], weight_decay: float) -> None:
        self.weights, self.count = weights, 0
        self.adam = torch.optim.AdamW(weights, lr=1e-4, weight_decay=weight_decay, fused=True)

    def descend(self, loss: Tensor) -> None:
        grads = torch.autograd.grad(loss, self.weights)
        total = torch.stack([g.norm() for g in grads]).norm()
        torch._foreach_mul_(grads, (0.25 / (total + 1e-6)).clamp(max=1.0))
        for p, g in zip(self.weights, grads, strict=True):
            p.grad = g
        self.adam.param_groups[0]["lr"] = 1e-4 * min(1.0, (self.count + 1) / 10_000)
        self.adam.step()
        self.count += 1


def dt(batches: Batches, obs: int, act: int, device: str) -> Loop:
    net = Transformer(obs, act, 128, 3, 1, device)
    time = torch.randn(EPISODE + 1, 128, device=device).mul_(0.02).requires_grad_()
    head = network(128, act, device=device)
    trained = Trained([*net.weights, time, *head], 1e-4)
    sample = windows(batches, obs, act)

    def step() -> None:
        s, a, to_go, inside, when = sample()
        place = F.embedding(when, time)
        tokens = [F.linear(x, *e) + place for x, e in zip((to_go, s, a), net.embed, strict=True)]
        error = (F.linear(net(tokens), *head).tanh() - a).pow(2).mean(-1)
        trained.descend((error * inside).sum() / inside.sum())

    return Loop(step, trained.weights)


def online_dt(batches: Batches, obs: int, act: int, device: str) -> Loop:
    net = Transformer(obs, act, 512, 4, 4, device)
    place = torch.randn(3 * WINDOW, 512, device=device).mul_(0.02).requires_grad_()
    loc, scale = (network(512, act, device=device) for _ in range(2))
    trained = Trained([*net.weights, place, *loc, *scale], 5e-4)
    log_alpha = torch.tensor(math.log(0.1), device=device, requires_grad=True)
    alpha_adam = torch.optim.Adam([log_alpha], lr=1e-4, fused=True)
    sample = windows(batches, obs, act)

    def density(policy: tuple[Tensor, Tensor], action: Tensor) -> Tensor:
        mean, log_std = policy
        raw = action.clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        z = (raw - mean) / log_std.exp()
        squash = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return (-0.5 * z.pow(2) - log_std - 0.5 * math.log(2 * math.pi) - squash).sum(-1)

    def step() -> None:
        s, a, to_go, inside, _ = sample()
        tokens = [F.linear(x, *e) for x, e in zip((to_go, s, a), net.embed, strict=True)]
        hidden = net(tokens, place)
        policy = F.linear(hidden, *loc), 3.5 * F.linear(hidden, *scale).tanh() - 1.5
        entropy = -draw(policy)[1]
        alpha, count = log_alpha.exp(), inside.sum()
        loss = -density(policy, a) - alpha.detach() * entropy
        alpha_loss = (alpha * (entropy.detach() + act) * inside).sum() / count
        trained.descend((loss * inside).sum() / count)
        (log_alpha.grad,) = torch.autograd.grad(alpha_loss, [log_alpha])
        alpha_adam.step()

    return Loop(step, [*trained.weights, log_alpha])


LOOPS = {"dt": dt, "online_dt": online_dt}
