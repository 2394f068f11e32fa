"""Networks and options of the losses over continuous actions with a deterministic actor."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tensordict import NestedKey, TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from tests.parity.continuous import (
    ACT,
    OBS,
    SKEWED,
    UNIT,
    WIDTH,
    Box,
    after,
    batch,
    bounded,
    critic,
    trunk,
)
from tests.parity.harness import Config, Library, hard, soft

TIME = (None, "time")
SOFT = soft()


class Scaled(nn.Module):
    """A layer whose scale is a buffer and whose bias is frozen."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.layer.bias.requires_grad_(False)
        self.register_buffer("scale", torch.rand(outputs) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


def actor(
    lib: Library,
    *,
    action: NestedKey = "action",
    common: TensorDictModule | None = None,
    buffers: bool = False,
) -> Any:
    source, width = ("observation", OBS) if common is None else ("hidden", WIDTH)
    first = (Scaled if buffers else nn.Linear)(width, WIDTH)
    layers = nn.Sequential(first, nn.Tanh(), nn.Linear(WIDTH, ACT))
    return after(common, lib.modules.Actor(layers, in_keys=[source], out_keys=[action]))


def networks(
    lib: Library,
    *,
    keys: dict[str, NestedKey] | None = None,
    shared: bool = False,
    buffers: bool = False,
    critics: int = 0,
) -> tuple[Any, Any]:
    """Actor and critic; ``critics`` makes a list of so many, ``shared`` one trunk for all."""
    keys = keys or {}
    action = keys.get("action", "action")
    common = trunk() if shared else None
    policy = actor(lib, action=action, common=common, buffers=buffers)
    if buffers:
        common = TensorDictModule(Scaled(OBS, WIDTH), in_keys=["observation"], out_keys=["hidden"])
    out = str(keys.get("state_action_value", "state_action_value"))
    many = [critic(lib, action=action, out=out, common=common) for _ in range(critics or 1)]
    return policy, many if critics else many[0]


def finish(lib: Library, loss: Any, keys: dict | None, estimator: tuple[str, dict] | None) -> Any:
    loss.set_keys(**(keys or {}))
    if estimator is not None:
        name, settings = estimator
        loss.make_value_estimator(getattr(lib.losses.ValueEstimators, name), **settings)
    return loss


def eps(keep: float) -> Any:
    return lambda lib, loss: lib.losses.SoftUpdate(loss, eps=keep)


def data(
    *shape: int, steps: bool = False, valid: bool = False, repeat: bool = False, **options: Any
) -> TensorDict:
    """A batch as of ``continuous.batch``; ``steps`` makes it one of n-step transitions, ``valid``
    adds a second mask, ``repeat`` leaves one half out, which equals the other."""
    made = batch(*shape, **options)
    generator = torch.Generator().manual_seed(11)
    if steps:
        made["steps_to_next_obs"] = torch.randint(1, 4, (*shape, 1), generator=generator)
    if valid:
        made["shifted_valid"] = torch.rand(*shape, generator=generator) < 0.6
    if repeat:
        keep = torch.arange(2 * len(made)) < len(made)
        made = torch.cat([made, made])
        made["collector", "mask"] = keep.view(-1, *(1,) * len(shape)).expand(*made.shape, 1)
    return made


KEYS = {
    "action": ("agent", "move"),
    "state_action_value": "q",
    "reward": "pay",
    "done": "stop",
    "terminated": ("flags", "over"),
    "priority": "urgency",
    "priority_weight": "importance",
}
RENAME = {
    "action": ("agent", "move"),
    ("next", "reward"): ("next", "pay"),
    ("next", "done"): ("next", "stop"),
    ("next", "terminated"): ("next", "flags", "over"),
    "priority_weight": "importance",
}

# Options that all these losses have: name -> arguments of `configs`' build and of `data`.
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "l1": {"loss_function": "l1"},
    "l2, hard updates": {"loss_function": "l2", "updater": hard(1)},
    "smooth l1, eps": {"loss_function": "smooth_l1", "updater": eps(0.7)},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "delayed actor": {"delay_actor": True},
    "actor not delayed": {"delay_actor": False},
    "shared trunk": {"shared": True},
    # torchrl's updaters leave the target of such a trunk where it is: docs/deviations.md
    "separate losses": {"shared": True, "separate_losses": True, "updater": None},
    "separate losses, nothing shared": {"separate_losses": True},
    "buffers and frozen layers": {"buffers": True},
    "gamma": {"estimator": ("TD0", {"gamma": 0.7})},
    "n-step transitions": {"estimator": ("TD0", {"gamma": 0.7}), "data": {"steps": True}},
    "TD1": {"estimator": ("TD1", {"gamma": 0.9}), "shape": (4, 3), "data": {"names": TIME}},
    "TDLambda": {
        "estimator": ("TDLambda", {"gamma": 0.9, "lmbda": 0.6}),
        "shape": (4, 5),
        "data": {"names": TIME},
    },
    "time": {"shape": (4, 3), "data": {"names": TIME}},
    "one column": {"shape": (8, 1)},
    "time and agents": {"shape": (4, 3, 2)},
    "weights": {"data": {"weights": True}},
    "weights, sum": {"reduction": "sum", "data": {"weights": True}},
    "weights, none": {"reduction": "none", "data": {"weights": True}},
    "weights demanded": {"use_prioritized_weights": True, "data": {"weights": True}},
    "weights off": {"use_prioritized_weights": False, "data": {"weights": True}},
    "torchrl's modules": {"own_modules": False},
    "torchrl's modules, time": {"own_modules": False, "shape": (4, 3), "data": {"names": TIME}},
}
MASKS: dict[str, dict[str, Any]] = {
    "mask": {"data": {"mask": True}},
    "mask, sum, time": {"reduction": "sum", "shape": (4, 3), "data": {"mask": True}},
    "mask, none": {"reduction": "none", "data": {"mask": True}},
    "two masks": {"data": {"mask": True, "valid": True}},
    "mask and weights": {"data": {"mask": True, "weights": True}},
    "mask and weights, none": {"reduction": "none", "data": {"mask": True, "weights": True}},
}

# What is left out equals what is not, so that a mean over all samples is one over the valid ones.
REPEATED = {
    name: {**kwargs, "data": {"repeat": True, "weights": "weights" in name}}
    for name, kwargs in MASKS.items()
}


def config(
    build: Any,
    name: str,
    *,
    updater: Any = SOFT,
    shape: tuple[int, ...] = (8,),
    own_modules: bool = True,
    skip: tuple[str, ...] = (),
    data: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Config:
    make = partial(globals()["data"], *shape, **(data or {}))
    return Config(name, partial(build, **kwargs), make, updater, own_modules, skip)


CRITICS: dict[str, dict[str, Any]] = {
    "one critic": {"num_qvalue_nets": 1},
    "five critics": {"num_qvalue_nets": 5},
    "list of critics": {"critics": 2},
    "list of critics, shared trunk": {"critics": 2, "shared": True, "separate_losses": True},
    "no vmap": {"deactivate_vmap": True},
    "no vmap, list": {"deactivate_vmap": True, "critics": 2},
    "critics not delayed": {"delay_qvalue": False},
    "nothing delayed": {"delay_actor": False, "delay_qvalue": False, "updater": None},
    "renamed": {"keys": KEYS, "data": {"rename": RENAME, "weights": True}},
}
SMOOTHING: dict[str, dict[str, Any]] = {
    "skewed bounds": {"box": SKEWED, "policy_noise": 2.0, "noise_clip": 3.0},
    "bounds": {"bounds": (-0.3, 0.4)},
    "bounds, tensors": {"bounds": tuple(torch.tensor(b) for b in SKEWED), "policy_noise": 1.0},
    "bounds in a composite": {"composite": True, "box": SKEWED, "policy_noise": 1.0},
    "no noise": {"policy_noise": 0.0},
    "noise clipped": {"policy_noise": 3.0, "noise_clip": 0.1},
}


def smoothed(
    name: str,
    lib: Library,
    *,
    keys: dict[str, NestedKey] | None = None,
    shared: bool = False,
    buffers: bool = False,
    critics: int = 0,
    estimator: tuple[str, dict] | None = None,
    box: Box = UNIT,
    composite: bool = False,
    bounds: Any = None,
    **kwargs: Any,
) -> Any:
    """TD3Loss, or one with the same arguments."""
    actor, critic = networks(lib, keys=keys, shared=shared, buffers=buffers, critics=critics)
    spec = bounded(lib, box)
    limits = {"bounds": bounds} if bounds else {"action_spec": spec}
    if composite:
        limits = {"action_spec": lib.specs.Composite({"action": spec})}
    loss = getattr(lib.losses, name)(actor, critic, **limits, **kwargs)
    return finish(lib, loss, keys, estimator)
