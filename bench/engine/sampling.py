"""Minibatches from packed data: one device tensor, one gather per batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor


class Sampler(Protocol):
    """Draws indices ahead of time and turns one step's indices into a batch."""

    batch_size: int

    @property
    def keys(self) -> Sequence[NestedKey]:
        """Of a batch."""
        ...

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        """One seed's indices for ``steps`` updates, ``[steps, batch]``."""
        ...

    def leaves(self, index: Tensor) -> list[Tensor]:
        """``[n_seeds, batch]`` indices to tensors ``[n_seeds, batch, ...]``, in the order of
        ``keys``."""
        ...


def gather(sampler: Sampler, index: Tensor) -> TensorDict:
    """A batch ``[n_seeds, batch]`` of whole transitions or windows."""
    named = dict(zip(sampler.keys, sampler.leaves(index), strict=True))
    return TensorDict(named, index.shape)


class Packed:
    """Columns of a transition table side by side in one float32 tensor ``[n, width]``."""

    def __init__(self, table: TensorDict, device: torch.device | str = "cpu") -> None:
        self.keys: list[NestedKey] = list(table.keys(True, True))
        columns = [table.get(k).reshape(table.batch_size[0], -1).float() for k in self.keys]
        self.shapes = [table.get(k).shape[1:] for k in self.keys]
        self.widths = [c.shape[1] for c in columns]
        self.data = torch.cat(columns, 1).to(device)

    def columns(self, index: Tensor) -> list[Tensor]:
        """The rows at ``index`` (any shape), ``[*index, ...]`` per column, as floats."""
        flat = self.data.index_select(0, index.reshape(-1)).reshape(*index.shape, -1)
        parts = flat.split(self.widths, -1)
        return [p.reshape(*index.shape, *s) for p, s in zip(parts, self.shapes, strict=True)]


class TransitionSampler:
    """Uniform minibatches of transitions, with replacement.

    Args:
        table: transitions ``[n]`` (only entries the loss reads; ``valid_next`` is obeyed).
        batch_size: transitions per seed and update.
    """

    def __init__(
        self, table: TensorDict, batch_size: int, device: torch.device | str = "cpu"
    ) -> None:
        keep = table.get("valid_next", None)
        if keep is not None and not bool(keep.all()):
            table = table[keep]
        self.packed = Packed(table.exclude("valid_next"), device)
        self.batch_size = batch_size

    @property
    def keys(self) -> Sequence[NestedKey]:
        return self.packed.keys

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        n = self.packed.data.shape[0]
        shape = (steps, self.batch_size)
        return torch.randint(n, shape, generator=generator, device=generator.device)

    def leaves(self, index: Tensor) -> list[Tensor]:
        return self.packed.columns(index)


class WindowSampler:
    """Windows of ``length`` consecutive steps of one episode, padded at the end.

    Every step of the data is equally likely to start a window. Padding is zero and marked False
    under ``("collector", "mask")``.

    Args:
        table: steps ``[n]`` in order, with ``episode``.
    """

    def __init__(
        self,
        table: TensorDict,
        batch_size: int,
        length: int,
        device: torch.device | str = "cpu",
    ) -> None:
        episode = table.get("episode")
        _, counts = torch.unique_consecutive(episode, return_counts=True)
        self.end = counts.cumsum(0).repeat_interleave(counts).to(device)
        self.packed = Packed(table.exclude("episode", "valid_next"), device)
        self.batch_size = batch_size
        self.offsets = torch.arange(length, device=device)

    @property
    def keys(self) -> Sequence[NestedKey]:
        return [*self.packed.keys, ("collector", "mask")]

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        shape = (steps, self.batch_size)
        return torch.randint(len(self.end), shape, generator=generator, device=generator.device)

    def leaves(self, index: Tensor) -> list[Tensor]:
        rows = index.unsqueeze(-1) + self.offsets
        end = self.end[index].unsqueeze(-1)
        mask = rows < end
        found = self.packed.columns(torch.minimum(rows, end - 1))
        kept = (c * mask.reshape(*mask.shape, *[1] * (c.ndim - mask.ndim)) for c in found)
        return [*kept, mask]
