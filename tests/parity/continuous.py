"""Networks and batches of the losses over continuous actions with a stochastic actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn

from tests.parity.harness import Library, transitions

OBS, ACT, WIDTH = 4, 2, 5
UNIT = ((-1.0, -1.0), (1.0, 1.0))
SKEWED = ((-1.0, -2.0), (1.0, 0.5))
TIME = (None, "time")
KEYS = {
    "action": "move",
    "state_action_value": "q",
    "reward": "pay",
    "done": "stop",
    "terminated": ("flags", "over"),
    "priority": "urgency",
}
RENAME = {  # the entries of a batch for these keys
    "action": "move",
    ("next", "reward"): ("next", "pay"),
    ("next", "done"): ("next", "stop"),
    ("next", "terminated"): ("next", "flags", "over"),
}
LEFT_BEHIND = ("loc", "scale", "hidden")  # torchrl's actors leave these in the batch
Box = tuple[Sequence[float], Sequence[float]]


class MeanAndScale(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = x.chunk(2, -1)
        return mean, (0.5 * log_scale).exp()


class Critic(nn.Module):
    def __init__(self, observation: int = OBS) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(observation + ACT, WIDTH), nn.Tanh())
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.head(self.net(torch.cat([observation, action], -1)))


def bounded(lib: Library, box: Box = UNIT) -> Any:
    return lib.specs.Bounded(torch.tensor(box[0]), torch.tensor(box[1]), (ACT,))


def trunk(observation: str = "observation") -> TensorDictModule:
    """Features that several networks share."""
    layer = nn.Sequential(nn.Linear(OBS, WIDTH), nn.Tanh())
    return TensorDictModule(layer, in_keys=[observation], out_keys=["hidden"])


def after(
    common: TensorDictModule | None, head: TensorDictModuleBase
) -> TensorDictModule | TensorDictSequential:
    return head if common is None else TensorDictSequential(common, head)


def stochastic(
    lib: Library,
    *,
    box: Box = UNIT,
    tanh: bool = True,
    action: NestedKey = "action",
    common: TensorDictModule | None = None,
    spec: bool = True,
) -> Any:
    source, width = ("observation", OBS) if common is None else ("hidden", WIDTH)
    body = nn.Sequential(nn.Linear(width, 2 * ACT), MeanAndScale())
    head = TensorDictModule(body, in_keys=[source], out_keys=["loc", "scale"])
    bounds = {"low": torch.tensor(box[0]), "high": torch.tensor(box[1])}
    kind = lib.modules.TanhNormal if tanh else lib.modules.IndependentNormal
    return lib.modules.ProbabilisticActor(
        after(common, head),
        in_keys=["loc", "scale"],
        out_keys=[action],
        distribution_class=kind,
        distribution_kwargs=bounds if tanh else {},
        spec=bounded(lib, box) if spec else None,
    )


def critic(
    lib: Library,
    *,
    action: NestedKey = "action",
    out: str = "state_action_value",
    common: TensorDictModule | None = None,
) -> Any:
    source, width = ("observation", OBS) if common is None else ("hidden", WIDTH)
    head = lib.modules.ValueOperator(Critic(width), in_keys=[source, action], out_keys=[out])
    return after(common, head)


def value(lib: Library, *, out: str = "state_value", common: TensorDictModule | None = None) -> Any:
    source, width = ("observation", OBS) if common is None else ("hidden", WIDTH)
    layers = nn.Sequential(nn.Linear(width, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    return after(common, lib.modules.ValueOperator(layers, in_keys=[source], out_keys=[out]))


def estimate(lib: Library, loss: Any, estimator: tuple[str, dict] | None) -> None:
    """Choose a value estimator by name and hyper-parameters; None keeps the default."""
    if estimator is not None:
        name, hyper = estimator
        loss.make_value_estimator(getattr(lib.losses.ValueEstimators, name), **hyper)


def batch(
    *shape: int,
    box: Box = UNIT,
    names: Sequence[str | None] | None = None,
    mask: bool = False,
    weights: bool = False,
    ends: bool = True,
    steps: int = 0,
    rename: dict[NestedKey, NestedKey] | None = None,
) -> TensorDict:
    """Transitions whose actions lie within ``box``."""
    data = transitions(*shape)
    low, high = (torch.tensor(b) for b in box)
    data["action"] = low + (high - low) * (data["action"] + 1) / 2
    generator = torch.Generator().manual_seed(5)
    if mask:
        data["collector", "mask"] = torch.rand(*shape, 1, generator=generator) < 0.7
    if weights:
        data["priority_weight"] = torch.rand(*shape, generator=generator) + 0.1
    if not ends:
        data["next", "done"] = torch.zeros_like(data["next", "done"])
        data["next", "terminated"] = torch.zeros_like(data["next", "done"])
    if steps:
        data["steps_to_next_obs"] = torch.full((*shape, 1), steps)
    for old, new in (rename or {}).items():
        data.rename_key_(old, new)
    if names is not None:
        data.names = names
    return data
