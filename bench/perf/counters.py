"""Exact counts of what a step does, the same on every machine. Needs torch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
# These make no kernel: they rename memory or reserve it.
_FREE = {
    aten._unsafe_view,
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
}
_WAITS = {aten._local_scalar_dense, aten.equal}  # a number for Python: the device must be done


class Counter(TorchDispatchMode):
    """Counts the operations below autograd and vmap.

    ``launches`` are those that do work on the device: all but views and reservations of memory; a
    fused or ``_foreach_`` operation is one. ``flops`` are those of matrix products, by torch's own
    formulas (its FlopCounterMode hooks into modules, too, which not every library's bear).
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.launches = self.waits = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket
        if name in _WAITS:
            self.waits += 1
        elif not func.is_view and name not in _FREE:
            self.launches += 1
        out = func(*args, **(kwargs or {}))
        if name in flop_registry:
            self.flops += flop_registry[name](*args, **(kwargs or {}), out_val=out)
        return out


def count(step: Callable[[], object], updates: int) -> dict[str, float]:
    """``flops``, ``launches`` and ``waits`` of Python for the device, per step."""
    with Counter() as counter:
        for _ in range(updates):
            step()
    names = ("flops", "launches", "waits")
    return {name: getattr(counter, name) / updates for name in names}
