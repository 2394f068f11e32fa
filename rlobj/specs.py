"""Action and observation spaces: the small part of a spec library that the losses need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlobj import noise


class Bounded:
    """A box ``low <= x <= high``.

    Args:
        low, high: bounds, numbers or tensors that broadcast to ``shape``.
        shape: shape of one element; by default the broadcast shape of the bounds.

    Raises:
        ValueError: when a bound is missing, or a low bound exceeds its high bound.
    """

    def __init__(
        self,
        low: float | Tensor | None = None,
        high: float | Tensor | None = None,
        shape: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if low is None or high is None:
            raise ValueError("Bounded needs both low and high")
        dtype = dtype or (low.dtype if isinstance(low, Tensor) else torch.get_default_dtype())
        low_t = torch.as_tensor(low, dtype=dtype, device=device)
        high_t = torch.as_tensor(high, dtype=dtype, device=device)
        if shape is None:
            shape = torch.broadcast_shapes(low_t.shape, high_t.shape)
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.low = low_t.expand(self.shape).clone()
        self.high = high_t.expand(self.shape).clone()
        if bool((self.low > self.high).any()):
            raise ValueError("Bounded: low exceeds high")

    @property
    def device(self) -> torch.device:
        return self.low.device

    def rand(self, batch: Sequence[int] = ()) -> Tensor:
        """Uniform samples, shape ``[*batch, *shape]``."""
        u = noise.uniform((*batch, *self.shape), self.low)
        return self.low + (self.high - self.low) * u

    def project(self, value: Tensor) -> Tensor:
        """The nearest point of the box."""
        return value.clamp(self.low, self.high)

    def is_in(self, value: Tensor) -> bool:
        return bool(((value >= self.low) & (value <= self.high)).all())

    def to(self, dest: torch.device | str) -> Bounded:
        return Bounded(self.low.to(dest), self.high.to(dest), self.shape, dtype=self.dtype)

    def __repr__(self) -> str:
        return f"Bounded(low={self.low.tolist()}, high={self.high.tolist()})"


def bounds(spec: object, what: str = "action_spec") -> tuple[Tensor, Tensor]:
    """``(low, high)`` of any box spec, ours or another library's (``.space.low`` / ``.low``).

    A composite spec is looked into under ``"action"``.

    Raises:
        ValueError: when the spec has no bounds.
    """
    if not hasattr(spec, "low") and not hasattr(spec, "space") and hasattr(spec, "__getitem__"):
        spec = spec["action"]
    box = spec if isinstance(getattr(spec, "low", None), Tensor) else getattr(spec, "space", None)
    low, high = getattr(box, "low", None), getattr(box, "high", None)
    if low is None or high is None:
        raise ValueError(f"{what} has no bounds: give a Bounded spec (got {type(spec).__name__})")
    return low, high
