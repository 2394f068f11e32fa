"""What the updates share: layers, optimizers, batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

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


def norms(*sizes: int, copies: int = 0, device: str = "cpu") -> Net:
    """Weights and biases of LayerNorms."""
    shapes = [(copies, 1, n) if copies else (n,) for n in sizes]
    starts = [(shape, start) for shape in shapes for start in (1.0, 0.0)]
    return [torch.full(s, v, device=device, requires_grad=True) for s, v in starts]


Between = Callable[[Tensor, int], Tensor]  # what stands behind hidden layer i


def relu(x: Tensor, i: int) -> Tensor:
    return x.relu()


def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over the last axis; weight and bias may have a leading axis of networks."""
    if weight.ndim == 1:
        return F.layer_norm(x, weight.shape, weight, bias)
    return torch.addcmul(bias, F.layer_norm(x, weight.shape[-1:]), weight)


def mlp(x: Tensor, net: Sequence[Tensor], between: Between = relu) -> Tensor:
    """``[batch, in]`` through one network; ``[copies, batch, in]`` through stacked ones."""
    for i in range(0, len(net), 2):
        w, b = net[i], net[i + 1]
        x = torch.baddbmm(b, x, w) if w.ndim == 3 else F.linear(x, w, b)
        if i + 2 < len(net):
            x = between(x, i // 2)
    return x


def critics(
    net: Net, observation: Tensor, action: Tensor | None = None, between: Between = relu
) -> Tensor:
    """Q(s, a) ``[copies, batch]``, or without an action Q(s, ·) ``[copies, batch, n]``."""
    rows = observation if action is None else torch.cat([observation, action], -1)
    q = mlp(rows.expand(len(net[0]), *rows.shape), net, between)
    return q if action is None else q.squeeze(-1)


def copy_of(net: Net) -> Net:
    return [t.detach().clone() for t in net]


def detached(net: Net, linear: bool = False) -> Net:
    """Without gradient; ``linear`` turns the layout of stacked layers into that of F.linear."""
    out = [t.detach() for t in net]
    if linear:
        out = [t.transpose(1, 2) if i % 2 == 0 else t.squeeze(1) for i, t in enumerate(out)]
    return out


class Learner:
    """A network's parameters with their optimizer."""

    def __init__(self, net: Net, lr: float = 3e-4, weight_decay: float = 0.0) -> None:
        self.net = net
        self.adam = torch.optim.Adam(net, lr=lr, weight_decay=weight_decay, fused=True)

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


def follow(target: Net, net: Net, tau: float = TAU) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(target, net, tau)


def goal_of(r: Tensor, more: Tensor, after: Tensor) -> Tensor:
    """``r + gamma V(s')`` from ``[batch, 1]``, ``[batch, 1]`` and ``[batch]``."""
    return r.squeeze(1) + GAMMA * more.squeeze(1) * after


class Batches:
    """Rows of one packed tensor, cut into columns: ``(s, a, r, s', not terminated)`` and then what
    else the tensor holds."""

    def __init__(self, data: Tensor, columns: Iterable[int], size: int = 256) -> None:
        self.data, self.size, self.columns = data, size, list(columns)

    def __call__(self) -> tuple[Tensor, ...]:
        index = torch.randint(len(self.data), (self.size,), device=self.data.device)
        return self.data.index_select(0, index).split(self.columns, 1)


Policy = tuple[Tensor, Tensor]  # location and log standard deviation


def gaussian(policy: Policy, action: Tensor) -> Tensor:
    """Log-density ``[batch]``."""
    loc, log_std = policy
    z = (action - loc) / log_std.exp()
    return (-0.5 * z.pow(2) - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def squashed(s: Tensor, net: Net, least: float = -20.0) -> Policy:
    """What :func:`draw` draws from: a Gaussian before its tanh."""
    loc, log_std = mlp(s, net).chunk(2, 1)
    return loc, log_std.clamp(least, 2.0)


def draw(policy: Policy, n: int = 0) -> tuple[Tensor, Tensor]:
    """``n`` actions of a Gaussian under tanh (0: one, no axis) and their log-densities."""
    loc, log_std = policy
    noise = torch.randn((n, *loc.shape) if n else loc.shape, device=loc.device)
    raw = loc + log_std.exp() * noise
    density = -0.5 * noise.pow(2) - log_std - 0.5 * math.log(2 * math.pi)
    squash = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
    return raw.tanh(), (density - squash).sum(-1)
