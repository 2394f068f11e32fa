"""Networks from torchrl.modules, and how its scripts descend on a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from tensordict.nn import (
    AddStateIndependentNormalScale,
    NormalParamExtractor,
    TensorDictModule,
    TensorDictSequential,
)
from torch import Tensor, nn

from bench.perf.work import Work

GAMMA, TAU, LR = 0.99, 0.005, 3e-4
Learner = tuple[Callable[[Any], None], list[torch.optim.Optimizer]]


def adam(parameters: Iterable[Tensor], lr: float = LR, decay: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.Adam(list(parameters), lr=lr, weight_decay=decay)


def leaves(parameters: Any) -> list[Tensor]:
    return [p for p in parameters.values(True, True) if p.requires_grad]


class Nets:
    """Networks of one work; everything is made on its device."""

    def __init__(self, work: Work, *hidden: int) -> None:
        from torchrl.data import Bounded

        self.work, self.hidden = work, list(hidden or (256, 256))
        if not work.discrete:
            self.spec = Bounded(low=-1.0, high=1.0, shape=(work.action,), device=work.device)

    def mlp(self, inputs: int, outputs: int | tuple[int, ...]) -> nn.Module:
        from torchrl.modules import MLP

        return MLP(
            in_features=inputs,
            out_features=outputs,
            num_cells=self.hidden,
            activation_class=nn.ReLU,
            device=self.work.device,
        )

    def deterministic(self) -> nn.Module:
        from torchrl.modules import TanhModule

        net = self.mlp(self.work.observation, self.work.action)
        return TensorDictSequential(
            TensorDictModule(net, in_keys=["observation"], out_keys=["param"]),
            TanhModule(in_keys=["param"], out_keys=["action"], spec=self.spec),
        )

    def stochastic(self) -> nn.Module:
        from torchrl.modules import ProbabilisticActor, TanhNormal

        net = nn.Sequential(
            self.mlp(self.work.observation, 2 * self.work.action), NormalParamExtractor()
        )
        return ProbabilisticActor(
            TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"],
            spec=self.spec,
            distribution_class=TanhNormal,
            distribution_kwargs={"low": -1.0, "high": 1.0, "tanh_loc": False},
        )

    def gaussian(self) -> nn.Module:
        """A bounded location and one learned scale per number of an action."""
        from torchrl.modules import IndependentNormal, ProbabilisticActor

        scale = AddStateIndependentNormalScale(self.work.action).to(self.work.device)
        net = nn.Sequential(self.mlp(self.work.observation, self.work.action), nn.Tanh(), scale)
        return ProbabilisticActor(
            TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"],
            distribution_class=IndependentNormal,
        )

    def categorical(self) -> nn.Module:
        from torchrl.modules import ProbabilisticActor

        net = self.mlp(self.work.observation, self.work.action)
        return ProbabilisticActor(
            TensorDictModule(net, in_keys=["observation"], out_keys=["logits"]),
            in_keys=["logits"],
            distribution_class=torch.distributions.Categorical,
        )

    def critic(self) -> nn.Module:
        from torchrl.modules import ValueOperator

        net = self.mlp(self.work.observation + self.work.action, 1)
        return ValueOperator(net, in_keys=["observation", "action"])

    def all_critic(self, out: str = "action_value") -> nn.Module:
        net = self.mlp(self.work.observation, self.work.action)
        return TensorDictModule(net, in_keys=["observation"], out_keys=[out])

    def value(self) -> nn.Module:
        from torchrl.modules import ValueOperator

        return ValueOperator(self.mlp(self.work.observation, 1), in_keys=["observation"])


def descend(value: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    value.backward()
    optimizer.step()


def all_at_once(
    loss: Any,
    optimizers: list[torch.optim.Optimizer],
    *terms: str,
    tau: float = TAU,
    prepare: Callable[[Any], Any] = lambda batch: batch,
) -> Learner:
    """One backward of the sum of the terms, one step of the grouped optimizers, and where there are
    delayed networks (``tau``) they follow."""
    from torchrl.objectives import SoftUpdate, group_optimizers

    optimizer = group_optimizers(*optimizers)
    targets = SoftUpdate(loss, eps=1 - tau) if tau else None

    def update(batch: Any) -> None:
        found = loss(prepare(batch))
        sum(found[t] for t in terms).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if targets is not None:
            targets.step()

    return update, optimizers
