"""How a loss's methods are called: its sampling mode, its parts alone or inside ``forward``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import set_interaction_type
from torch import Tensor

T = TypeVar("T")
Part = Callable[[Any, TensorDictBase], tuple[Tensor, dict[str, Tensor]]]


def in_loss_mode(method: Callable) -> Callable:
    """Run a loss method with the loss's own sampling mode (deterministic unless it says else)."""
    whole = method.__name__ == "forward"

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.__dict__["_seen"] is not None:  # inside forward, and so in its mode
            return method(self, *args, **kwargs)
        with set_interaction_type(self.deterministic_sampling_mode):
            if not whole:
                return method(self, *args, **kwargs)
            self._warn_if_targets_stand_still()
            return _within(self, method, *args, **kwargs)

    return wrapper


def _within(self: Any, method: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call a method inside which parts stay per sample and ``once`` remembers."""
    held = self.__dict__
    before, held["_seen"] = held["_seen"], {}
    try:
        return method(self, *args, **kwargs)
    finally:
        held["_seen"] = before


def part(method: Part) -> Part:
    """Declare a method ``(tensordict) -> (loss per sample, info)`` as a part of the loss: called
    by itself it returns the reduced loss, as upstream's parts do."""

    @functools.wraps(method)
    def wrapper(self: Any, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        if self.__dict__["_seen"] is not None:
            return method(self, tensordict)
        loss, info = _within(self, method, tensordict)
        return self.reduce(loss, tensordict), info

    return wrapper


def once(method: Callable[[Any, TensorDictBase], T]) -> Callable[[Any, TensorDictBase], T]:
    """Within one ``forward``, compute the method's result for the same batch only once (and anew
    where it needs a graph that the first did not)."""

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
