"""What a recipe hands to the engine: a loss, and how its terms are optimised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from rlobj import LossModule

Terms = Callable[[LossModule, TensorDictBase], Mapping[str, Tensor]]
Schedule = Callable[[int, int], float]  # (step, total steps) -> factor on the learning rate


@dataclass(frozen=True)
class Group:
    """Parameters under one optimizer setting.

    ``tensors`` are prefixes of the loss's state-dict names, e.g. ``"qvalue_network_params"``.
    """

    tensors: tuple[str, ...]
    lr: float
    weight_decay: float = 0.0
    decoupled: bool = False  # True: AdamW
    schedule: Schedule | None = None


@dataclass(frozen=True)
class Phase:
    """One gradient step within an update.

    ``terms(loss, batch)`` returns scalars; every name that starts with ``loss_`` is summed and
    differentiated with respect to the groups' tensors, the rest is logged.
    """

    name: str
    terms: Terms
    groups: tuple[Group, ...]
    every: int = 1  # runs at steps divisible by this
    clip_norm: float | None = None  # per seed, over all of the phase's tensors
    targets: tuple[str, ...] = ()  # networks whose delayed copy moves after this phase


@dataclass(frozen=True)
class Agent:
    """A loss with its optimisation; ``policy(loss, observed)`` is the evaluated action."""

    loss: LossModule
    phases: tuple[Phase, ...]
    tau: float = 0.005
    policy: Callable[[LossModule, TensorDict], Tensor] | None = None
