"""Spaces of one tensor: boxes, integers, one-hot vectors, switches.

A spec describes one element (``shape``, ``dtype``, ``device``, ``space``) and can draw, project
and check elements with any number of leading batch axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlobj import noise

Shape = Sequence[int]
Device = torch.device | str | None


class ContinuousBox(NamedTuple):
    """The set of points between ``low`` and ``high``."""

    low: Tensor
    high: Tensor


class CategoricalBox(NamedTuple):
    """``n`` alternatives."""

    n: int


class BinaryBox(NamedTuple):
    """``n`` switches."""

    n: int


class BoxList(NamedTuple):
    """Several independent choices."""

    boxes: tuple[CategoricalBox, ...]


class TensorSpec:
    """What all specs share. ``space`` describes the set, where there is something to say."""

    space: Any
    device: torch.device | None

    def __init__(self, shape: Shape, dtype: torch.dtype, device: Device) -> None:
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.device = torch.empty(0, device=device).device

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def rand(self, batch: Shape = ()) -> Tensor:
        """A random element, shape ``[*batch, *shape]``."""
        raise NotImplementedError

    def zero(self, batch: Shape = ()) -> Tensor:
        """Zeros ``[*batch, *shape]`` (of a one-hot space too, where they are no element)."""
        return torch.zeros((*batch, *self.shape), dtype=self.dtype, device=self.device)

    def one(self, batch: Shape = ()) -> Tensor:
        """Ones ``[*batch, *shape]``."""
        return torch.ones((*batch, *self.shape), dtype=self.dtype, device=self.device)

    def zeros(self, batch: Shape = ()) -> Tensor:
        return self.zero(batch)

    def ones(self, batch: Shape = ()) -> Tensor:
        return self.one(batch)

    def sample(self, batch: Shape = ()) -> Tensor:
        return self.rand(batch)

    def contains(self, value: Tensor) -> bool:
        return self.is_in(value)

    def clone(self) -> TensorSpec:
        """A spec of its own for the same space."""
        return deepcopy(self)

    def project(self, value: Tensor) -> Tensor:
        """The nearest element of the space."""
        raise NotImplementedError

    def is_in(self, value: Tensor) -> bool:
        """Whether every entry of ``value`` ``[*batch, *shape]`` is an element."""
        fits = value.shape[value.ndim - self.ndim :] == self.shape and value.dtype == self.dtype
        return fits and bool(self._holds(value))

    def _holds(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def to(self, dest: torch.device | str) -> TensorSpec:
        """The same space on another device."""
        raise NotImplementedError

    def _uniform(self, *shape: int) -> Tensor:
        """U[0, 1) in the default floating type."""
        return noise.uniform(shape, torch.empty(0, device=self.device))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"


class Bounded(TensorSpec):
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
        shape: Shape | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if low is None or high is None:
            raise ValueError("Bounded needs both low and high")
        dtype = dtype or (low.dtype if isinstance(low, Tensor) else torch.get_default_dtype())
        low_t = torch.as_tensor(low, dtype=dtype, device=device)
        high_t = torch.as_tensor(high, dtype=dtype, device=device)
        if shape is None:
            shape = torch.broadcast_shapes(low_t.shape, high_t.shape)
        super().__init__(shape, dtype, low_t.device)
        self.low = low_t.expand(self.shape).clone()
        self.high = high_t.expand(self.shape).clone()
        if bool((self.low > self.high).any()):
            raise ValueError("Bounded: low exceeds high")

    @property
    def space(self) -> ContinuousBox:
        return ContinuousBox(self.low, self.high)

    def rand(self, batch: Shape = ()) -> Tensor:
        """Uniform samples ``[*batch, *shape]``; of integers, both bounds included."""
        if self.dtype.is_floating_point:
            u = noise.uniform((*batch, *self.shape), self.low)
            return self.low + (self.high - self.low) * u
        steps = self._uniform(*batch, *self.shape) * (self.high - self.low + 1)
        return self.low + steps.to(self.dtype)

    def project(self, value: Tensor) -> Tensor:
        return value.clamp(self.low, self.high)

    def _holds(self, value: Tensor) -> Tensor:
        return ((value >= self.low) & (value <= self.high)).all()

    def to(self, dest: torch.device | str) -> Bounded:
        return Bounded(self.low.to(dest), self.high.to(dest), self.shape, dtype=self.dtype)

    def __repr__(self) -> str:
        return f"Bounded(low={self.low.tolist()}, high={self.high.tolist()})"


class Unbounded(TensorSpec):
    """All real (or integer) tensors of a shape; ``rand`` draws N(0, 1), or 0 and 1 of integers."""

    def __init__(
        self,
        shape: Shape | int = (1,),
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (shape,) if isinstance(shape, int) else shape
        super().__init__(shape, dtype or torch.get_default_dtype(), device)

    def rand(self, batch: Shape = ()) -> Tensor:
        shape = (*batch, *self.shape)
        if self.dtype.is_floating_point:
            return noise.normal(shape, torch.empty(0, dtype=self.dtype, device=self.device))
        return (self._uniform(*shape) < 0.5).to(self.dtype)

    def project(self, value: Tensor) -> Tensor:
        return value

    def _holds(self, value: Tensor) -> Tensor:
        return torch.ones((), dtype=torch.bool)

    def to(self, dest: torch.device | str) -> Unbounded:
        return Unbounded(self.shape, dest, self.dtype)


def one_hot(index: Tensor, n: int, dtype: torch.dtype = torch.long) -> Tensor:
    """``index`` ``[*batch]`` as ``[*batch, n]`` (unlike torch's: traceable, vmappable)."""
    return (index.unsqueeze(-1) == torch.arange(n, device=index.device)).to(dtype)


def _choose(u: Tensor, mask: Tensor | None) -> Tensor:
    """An alternative per row of ``u`` ``[*batch, n]``, each that ``mask`` allows as likely."""
    return (u if mask is None else u.masked_fill(~mask, -1.0)).argmax(-1)


def _checked_mask(mask: Tensor | None, n: int, device: torch.device | None) -> Tensor | None:
    if mask is None:
        return None
    if mask.shape[-1] != n or not bool(mask.any(-1).all()):
        raise ValueError(f"the mask needs {n} entries along its last axis, one of them True")
    return mask.to(device, torch.bool)


class Categorical(TensorSpec):
    """An integer in ``[0, n)`` per entry of ``shape``.

    Args:
        mask: boolean ``[*shape, n]``: the alternatives that are allowed.

    Raises:
        ValueError: when the mask does not fit, or forbids everything.
    """

    def __init__(
        self,
        n: int,
        shape: Shape | None = None,
        device: Device = None,
        dtype: torch.dtype = torch.int64,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__(() if shape is None else shape, dtype, device)
        self.n, self.mask = int(n), _checked_mask(mask, n, self.device)
        self.space = CategoricalBox(self.n)

    def rand(self, batch: Shape = ()) -> Tensor:
        u = self._uniform(*batch, *self.shape, self.n)
        return _choose(u, self.mask).to(self.dtype)

    def project(self, value: Tensor) -> Tensor:
        """The nearest integer of the range; the mask is not looked at."""
        return value.clamp(0, self.n - 1).round().to(self.dtype)

    def _holds(self, value: Tensor) -> Tensor:
        inside = (value >= 0) & (value < self.n)
        if self.mask is not None:
            index = value.clamp(0, self.n - 1).long()
            inside = inside & (one_hot(index, self.n, torch.bool) & self.mask).any(-1)
        return inside.all()

    def to(self, dest: torch.device | str) -> Categorical:
        return Categorical(self.n, self.shape, dest, self.dtype, self.mask)


class _OneHots(TensorSpec):
    """Independent choices side by side in the last axis, ``nvec[i]`` entries for the i-th."""

    nvec: tuple[int, ...]
    mask: Tensor | None = None

    def _check(self, use_register: bool, mask: Tensor | None) -> None:
        name = type(self).__name__
        if use_register:
            raise NotImplementedError(f"{name} encodes no values: use_register has no meaning")
        if not self.shape or self.shape[-1] != sum(self.nvec):
            raise ValueError(f"{name} needs shape[-1] == {sum(self.nvec)}, got {tuple(self.shape)}")
        if mask is not None:
            parts = [_checked_mask(m, m.shape[-1], self.device) for m in self._split(mask)]
            self.mask = torch.cat([m for m in parts if m is not None], -1)

    def _split(self, mask: Tensor) -> tuple[Tensor, ...]:
        if mask.shape[-1] != sum(self.nvec):
            raise ValueError(f"the mask needs {sum(self.nvec)} entries along its last axis")
        return self._parts(mask)

    def rand(self, batch: Shape = ()) -> Tensor:
        u = self._uniform(*batch, *self.shape)
        return self.project(u if self.mask is None else u.masked_fill(~self.mask, -1.0))

    def _parts(self, value: Tensor) -> tuple[Tensor, ...]:
        return value.split(self.nvec, -1)

    def project(self, value: Tensor) -> Tensor:
        """The largest entry of each choice becomes its one."""
        parts = (p.to(torch.get_default_dtype()).argmax(-1) for p in self._parts(value))
        chosen = zip(parts, self.nvec, strict=True)
        return torch.cat([one_hot(index, n, self.dtype) for index, n in chosen], -1)

    def _holds(self, value: Tensor) -> Tensor:
        binary = ((value == 0) | (value == 1)).all()
        single = [(p.to(torch.int64).sum(-1) == 1).all() for p in self._parts(value)]
        found = binary & torch.stack(single).all()
        return found if self.mask is None else found & (value.bool() <= self.mask).all()


class OneHot(_OneHots):
    """One of ``n`` alternatives as a vector with a single one.

    Args:
        mask: boolean ``[*shape]``: the alternatives that are allowed.

    Raises:
        ValueError: when the last axis is not ``n`` long, or the mask does not fit or forbids
            everything.
        NotImplementedError: on ``use_register``, which is about encoding values of other types.
    """

    def __init__(
        self,
        n: int,
        shape: Shape | None = None,
        device: Device = None,
        dtype: torch.dtype = torch.bool,
        use_register: bool = False,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__((n,) if shape is None else shape, dtype, device)
        self.n, self.nvec = int(n), (int(n),)
        self._check(use_register, mask)
        self.space = CategoricalBox(self.n)

    def to(self, dest: torch.device | str) -> OneHot:
        return OneHot(self.n, self.shape, dest, self.dtype, mask=self.mask)


class MultiOneHot(_OneHots):
    """Several choices, each a one-hot vector, concatenated along the last axis.

    Args:
        mask: boolean ``[*shape]``: the alternatives that are allowed.

    Raises:
        ValueError: when the last axis is not ``sum(nvec)`` long, or the mask does not fit or
            forbids all of a choice.
        NotImplementedError: on ``use_register``, as :class:`OneHot`.
    """

    def __init__(
        self,
        nvec: Sequence[int],
        shape: Shape | None = None,
        device: Device = None,
        dtype: torch.dtype = torch.bool,
        use_register: bool = False,
        mask: Tensor | None = None,
    ) -> None:
        self.nvec = tuple(int(n) for n in nvec)
        super().__init__((sum(self.nvec),) if shape is None else shape, dtype, device)
        self._check(use_register, mask)
        self.space = BoxList(tuple(CategoricalBox(n) for n in self.nvec))

    def to(self, dest: torch.device | str) -> MultiOneHot:
        return MultiOneHot(self.nvec, self.shape, dest, self.dtype, mask=self.mask)


class Binary(TensorSpec):
    """``n`` independent switches, each 0 or 1.

    Raises:
        ValueError: when ``n`` and ``shape`` are both missing, or disagree.
    """

    def __init__(
        self,
        n: int | None = None,
        shape: Shape | None = None,
        device: Device = None,
        dtype: torch.dtype = torch.int8,
    ) -> None:
        if n is None and not shape:
            raise ValueError("Binary needs n or shape")
        shape = (int(n or 0),) if shape is None else shape
        super().__init__(shape, dtype, device)
        self.n = self.shape[-1] if n is None else int(n)
        if self.shape[-1] != self.n:
            raise ValueError(f"Binary needs shape[-1] == {self.n}, got {tuple(self.shape)}")
        self.space = BinaryBox(self.n)

    def rand(self, batch: Shape = ()) -> Tensor:
        return (self._uniform(*batch, *self.shape) < 0.5).to(self.dtype)

    def project(self, value: Tensor) -> Tensor:
        return (value > 0.5).to(self.dtype)

    def _holds(self, value: Tensor) -> Tensor:
        return ((value == 0) | (value == 1)).all()

    def to(self, dest: torch.device | str) -> Binary:
        return Binary(self.n, self.shape, dest, self.dtype)
