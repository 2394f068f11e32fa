"""The networks of the recipes, as the papers describe them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlobj.modules import (
    MLP,
    Actor,
    Dropout,
    IndependentNormal,
    ProbabilisticActor,
    SafeModule,
    TanhNormal,
    ValueOperator,
)
from rlobj.specs import Bounded


def mlp(inputs: int, outputs: int, hidden: Sequence[int], dropout: float = 0.0) -> MLP:
    """ReLU network with torch's default initialisation."""
    net = MLP(inputs, outputs, num_cells=list(hidden), activation_class=nn.ReLU)
    if dropout:
        layers = [x for m in net for x in ((m, Dropout(dropout)) if _is_relu(m) else (m,))]
        net = _Layers(*layers)
    return net


class _Layers(MLP):
    def __init__(self, *layers: nn.Module) -> None:
        nn.Sequential.__init__(self, *layers)


def _is_relu(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU)


def orthogonal_(net: nn.Module, last_gain: float = 1e-2) -> None:
    """Orthogonal weights (gain sqrt(2)), zero biases, and a small last layer."""
    linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
    for layer in linears:
        nn.init.orthogonal_(layer.weight, gain=2**0.5)
        nn.init.zeros_(layer.bias)
    nn.init.orthogonal_(linears[-1].weight, gain=last_gain)


class ScaledTanh(nn.Module):
    """Squashes a network's output into ``[low, high]``."""

    low: Tensor
    high: Tensor

    def __init__(self, net: nn.Module, spec: Bounded) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("low", spec.low.clone())
        self.register_buffer("high", spec.high.clone())

    def forward(self, observation: Tensor) -> Tensor:
        y = self.net(observation).tanh()
        return self.low + 0.5 * (self.high - self.low) * (y + 1)


class GaussianHead(nn.Module):
    """Location and a state-dependent scale ``exp(clip(log_std))`` from one network."""

    def __init__(self, net: nn.Module, log_std: tuple[float, float] = (-20.0, 2.0)) -> None:
        super().__init__()
        self.net, self.range = net, log_std

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_std = self.net(observation).chunk(2, -1)
        return loc, log_std.clamp(*self.range).exp()


class FixedScaleHead(nn.Module):
    """A bounded location and one learned scale per action dimension (IQL's policy)."""

    def __init__(self, net: nn.Module, n: int, log_std: tuple[float, float] = (-5.0, 2.0)) -> None:
        super().__init__()
        self.net, self.range = net, log_std
        self.log_std = nn.Parameter(torch.zeros(n))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc = self.net(observation)
        return loc, self.log_std.clamp(*self.range).exp().expand_as(loc)


def deterministic_actor(obs: int, spec: Bounded, hidden: Sequence[int]) -> Actor:
    return Actor(ScaledTanh(mlp(obs, spec.shape[0], hidden), spec), spec=spec)


def tanh_gaussian_actor(
    obs: int,
    spec: Bounded,
    hidden: Sequence[int],
    *,
    log_std: tuple[float, float] = (-20.0, 2.0),
    orthogonal: bool = False,
) -> ProbabilisticActor:
    """SAC's policy: a Gaussian squashed into the action bounds."""
    net = mlp(obs, 2 * spec.shape[0], hidden)
    if orthogonal:
        orthogonal_(net)
    return ProbabilisticActor(
        SafeModule(GaussianHead(net, log_std), ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": spec.low, "high": spec.high},
        spec=spec,
    )


def gaussian_actor(
    obs: int, spec: Bounded, hidden: Sequence[int], dropout: float = 0.0
) -> ProbabilisticActor:
    """IQL's policy: a Gaussian around a bounded location, with a state-independent scale."""
    net = ScaledTanh(mlp(obs, spec.shape[0], hidden, dropout), spec)
    return ProbabilisticActor(
        SafeModule(FixedScaleHead(net, spec.shape[0]), ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        spec=spec,
    )


def critics(
    n: int, obs: int, act: int, hidden: Sequence[int], *, orthogonal: bool = False
) -> list[ValueOperator]:
    """``n`` independently initialised Q(s, a)."""
    found = [mlp(obs + act, 1, hidden) for _ in range(n)]
    for net in found if orthogonal else []:
        orthogonal_(net)
    return [ValueOperator(net, ["observation", "action"]) for net in found]


def value(obs: int, hidden: Sequence[int]) -> ValueOperator:
    """V(s)."""
    return ValueOperator(mlp(obs, 1, hidden), ["observation"])
