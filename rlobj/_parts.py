"""How a loss's methods run: in its sampling mode, parts reduced, shared work done once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import set_interaction_type
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor

T = TypeVar("T")
Part = Callable[[Any, TensorDictBase], tuple[Tensor, dict[str, Tensor]]]


def in_loss_mode(method: Callable) -> Callable:
    """Run a loss method with the loss's own sampling mode (deterministic unless it says else)."""
    whole = method.__name__ == "forward"

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if whole:
            self._warn_if_targets_stand_still()
        if interaction_type() is self.deterministic_sampling_mode:
            return method(self, *args, **kwargs)
        with set_interaction_type(self.deterministic_sampling_mode):
            return method(self, *args, **kwargs)

    return wrapper


def part(method: Part) -> Part:
    """Declare a method ``(tensordict) -> (loss per sample, info)`` as a part of the loss. Whoever
    calls it gets the reduced loss, as from upstream's parts."""

    @functools.wraps(method)
    def wrapper(self: Any, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        loss, info = method(self, tensordict)
        return self.reduce(loss, tensordict), info

    return wrapper


def sharing(forward: Callable[[Any, TensorDictBase], T]) -> Callable[[Any, TensorDictBase], T]:
    """Let a ``forward`` remember what its :func:`once` methods returned, until it ends."""

    @functools.wraps(forward)
    def wrapper(self: Any, tensordict: TensorDictBase) -> T:
        held = self.__dict__
        before, held["_seen"] = held["_seen"], {}
        try:
            return forward(self, tensordict)
        finally:
            held["_seen"] = before

    return wrapper


def once(method: Callable[[Any, TensorDictBase], T]) -> Callable[[Any, TensorDictBase], T]:
    """Within one :func:`sharing` forward, compute the method's result for the same batch only once
    (and anew where it needs a graph that the first did not)."""

    @functools.wraps(method)
    def wrapper(self: Any, tensordict: TensorDictBase) -> T:
        seen = self.__dict__["_seen"]
        if seen is None:
            return method(self, tensordict)
        known = seen.setdefault((method.__name__, torch.is_grad_enabled()), [])
        for batch, result in known:
            if batch is tensordict:
                return result
        known.append((tensordict, method(self, tensordict)))
        return known[-1][1]

    return wrapper
