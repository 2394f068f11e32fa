"""Minibatches from packed data: one tensor, one gather per batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor

from bench.engine.mapped import mapped

_BLOCK = 1 << 16  # rows that are packed at a time


class Sampler(Protocol):
    """Draws indices ahead of time and turns one step's indices into a batch."""

    batch_size: int

    @property
    def keys(self) -> Sequence[NestedKey]:
        """Of a batch."""
        ...

    def nbytes(self, indices: int) -> int:
        """What it holds for training with blocks of so many indices."""
        ...

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        """One seed's indices for ``steps`` updates, ``[steps, batch]``."""
        ...

    def leaves(self, index: Tensor) -> list[Tensor]:
        """``[n_seeds, batch]`` indices to tensors ``[n_seeds, batch, ...]``, in the order of
        ``keys``."""
        ...


class Source(Sampler, Protocol):
    """A sampler in two halves, for who reads the rows ahead of time."""

    packed: Packed

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows of the table for indices of any shape, ``[*index]`` or ``[*index, length]``, and
        where they count (None: everywhere)."""
        ...

    def cut(self, rows: Tensor, mask: Tensor | None) -> list[Tensor]:
        """The leaves from what lies in these rows, ``[..., width]``."""
        ...


def gather(sampler: Sampler, index: Tensor) -> TensorDict:
    """A batch ``[n_seeds, batch]`` of whole transitions or windows."""
    named = dict(zip(sampler.keys, sampler.leaves(index), strict=True))
    return TensorDict(named, index.shape)


class Packed:
    """Columns of a transition table side by side in one float32 tensor ``[n, width]``.

    Args:
        table: the columns, ``[n, ...]``.
        keep: which rows, bool ``[n]``; all where it is None.
        file: keep the tensor in a file that begins with this path instead of in memory.
    """

    def __init__(
        self,
        table: TensorDict,
        device: torch.device | str = "cpu",
        *,
        keep: Tensor | None = None,
        file: Path | None = None,
    ) -> None:
        self.keys: list[NestedKey] = list(table.keys(True, True))
        columns = [table.get(k) for k in self.keys]
        self.shapes = [c.shape[1:] for c in columns]
        self.widths = [c[:1].numel() for c in columns]
        kept = torch.arange(len(table)) if keep is None else keep.nonzero().squeeze(-1)
        shape = (len(kept), sum(self.widths))

        def blocks() -> Iterator[Tensor]:
            for rows in kept.split(_BLOCK):
                parts = [c[rows].reshape(len(rows), -1).float() for c in columns]
                yield torch.cat(parts, 1)

        if file is not None:
            self.data = mapped(file, blocks, shape)
            return
        self.data = torch.empty(shape, device=device)
        for held, block in zip(self.data.split(_BLOCK), blocks(), strict=True):
            held.copy_(block)

    def gather(self, rows: Tensor) -> Tensor:
        """What lies in the rows (any shape), ``[*rows, width]``."""
        return self.data.index_select(0, rows.reshape(-1)).reshape(*rows.shape, -1)

    def columns(self, rows: Tensor) -> list[Tensor]:
        """Packed rows ``[..., width]`` as a tensor ``[..., *shape]`` per column."""
        lead, parts = rows.shape[:-1], rows.split(self.widths, -1)
        return [p.reshape(*lead, *s) for p, s in zip(parts, self.shapes, strict=True)]


class TransitionSampler:
    """Uniform minibatches of transitions, with replacement.

    Args:
        table: transitions ``[n]`` (only entries the loss reads; ``valid_next`` is obeyed).
        batch_size: transitions per seed and update.
        file: see :class:`Packed`.
    """

    def __init__(
        self,
        table: TensorDict,
        batch_size: int,
        device: torch.device | str = "cpu",
        file: Path | None = None,
    ) -> None:
        keep = table.get("valid_next", None)
        self.packed = Packed(table.exclude("valid_next"), device, keep=keep, file=file)
        self.batch_size = batch_size

    @property
    def keys(self) -> Sequence[NestedKey]:
        return self.packed.keys

    def nbytes(self, indices: int) -> int:
        return self.packed.data.nbytes

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        n = self.packed.data.shape[0]
        shape = (steps, self.batch_size)
        return torch.randint(n, shape, generator=generator, device=generator.device)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        return index, None

    def cut(self, rows: Tensor, mask: Tensor | None) -> list[Tensor]:
        return self.packed.columns(rows)

    def leaves(self, index: Tensor) -> list[Tensor]:
        return self.packed.columns(self.packed.gather(index))


class WindowSampler:
    """Windows of ``length`` consecutive steps of one episode, padded at the end.

    Every step of the data is equally likely to start a window. Padding is zero and marked False
    under ``("collector", "mask")``.

    Args:
        table: steps ``[n]`` in order, with ``episode``.
        file: see :class:`Packed`.
    """

    def __init__(
        self,
        table: TensorDict,
        batch_size: int,
        length: int,
        device: torch.device | str = "cpu",
        file: Path | None = None,
    ) -> None:
        episode = table.get("episode")
        _, counts = torch.unique_consecutive(episode, return_counts=True)
        self.end = counts.cumsum(0).repeat_interleave(counts).to(device)
        self.packed = Packed(table.exclude("episode", "valid_next"), device, file=file)
        self.batch_size = batch_size
        self.offsets = torch.arange(length, device=device)

    @property
    def keys(self) -> Sequence[NestedKey]:
        return [*self.packed.keys, ("collector", "mask")]

    def nbytes(self, indices: int) -> int:
        return self.packed.data.nbytes + self.end.nbytes

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        shape = (steps, self.batch_size)
        return torch.randint(len(self.end), shape, generator=generator, device=generator.device)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        rows = index.unsqueeze(-1) + self.offsets
        end = self.end[index].unsqueeze(-1)
        return torch.minimum(rows, end - 1), rows < end

    def cut(self, rows: Tensor, mask: Tensor | None) -> list[Tensor]:
        assert mask is not None
        found = self.packed.columns(rows)
        kept = (c * mask.reshape(*mask.shape, *[1] * (c.ndim - mask.ndim)) for c in found)
        return [*kept, mask]

    def leaves(self, index: Tensor) -> list[Tensor]:
        rows, mask = self.rows(index)
        return self.cut(self.packed.gather(rows), mask)
