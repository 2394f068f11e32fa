"""Training data that stay in a file: the rows of a block of updates are read while the block
before it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import torch
from tensordict import NestedKey
from torch import Tensor

from bench.engine.sampling import Source

Draw = Callable[[int], Tensor]  # block -> its indices, [updates, n_seeds, batch]


class Streamed:
    """A sampler with the rows of two blocks in memory, in two halves of the same tensors: one
    trains and the other is filled by a thread. Batches are those of ``source``, bit for bit.

    Args:
        source: on the CPU, with its table in a file.
        device: where batches are needed.
    """

    def __init__(self, source: Source, device: torch.device | str = "cpu") -> None:
        self.source, self.batch_size = source, source.batch_size
        self.device = torch.device(device)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="bench-data")
        self._ahead: tuple[int, Future[None]] | None = None  # the block that is being read
        self._half = 0  # the one that trains
        cuda = self.device.type == "cuda"
        self._side = torch.cuda.Stream(self.device) if cuda else None
        self._shape = torch.Size()
        self._reserve(torch.zeros(1, dtype=torch.long))  # an example, for who traces
        self._fill(0, torch.zeros(1, dtype=torch.long))
        self._copy(0)

    @property
    def keys(self) -> Sequence[NestedKey]:
        return self.source.keys

    def nbytes(self, indices: int) -> int:
        """Two halves, and on a GPU as much again in the host's memory, which does not count."""
        rows, mask = self.source.rows(torch.zeros(1, dtype=torch.long))
        width = 4 * self.source.packed.data.shape[1] + (mask is not None)
        return 2 * indices * rows.numel() * width

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        return self.source.draw(generator, steps)

    def leaves(self, index: Tensor) -> list[Tensor]:
        """``index`` as :meth:`load` returned it."""
        found = [h.index_select(0, index.reshape(-1)) for h in self._held]
        rows, *mask = [f.reshape(*index.shape, *f.shape[1:]) for f in found]
        return self.source.cut(rows, mask[0] if mask else None)

    def load(self, block: int, draw: Draw) -> Tensor:
        """Have a block's rows in memory; their indices there, for :meth:`leaves`. The next
        block's are read from now on."""
        if self._ahead is None or self._ahead[0] != block:
            self._read(block, draw)
        assert self._ahead is not None
        self._ahead[1].result()
        self._half = 1 - self._half
        self._copy(self._half)
        index = torch.arange(self._shape.numel(), device=self.device).view(self._shape)
        index += self._half * self._shape.numel()
        self._read(block + 1, draw)
        return index

    def _read(self, block: int, draw: Draw) -> None:
        if self._ahead is not None:
            self._ahead[1].result()  # it fills the same half
        with self._aside():
            index = draw(block).cpu()  # waits for earlier copies, too: the host's half is free
        if index.shape != self._shape:
            self._reserve(index)
        future = self._reader.submit(self._fill, 1 - self._half, index.reshape(-1))
        self._ahead = block, future

    def _reserve(self, index: Tensor) -> None:
        """Tensors for two blocks of that many indices, ``[2 * n, ...]``, here and on the device."""
        rows, mask = self.source.rows(index.reshape(-1))
        shape, count = (*rows.shape[1:], self.source.packed.data.shape[1]), 2 * len(rows)
        pin = self._side is not None
        self._host = [torch.zeros(count, *shape, pin_memory=pin)]
        if mask is not None:
            self._host.append(torch.zeros(count, *mask.shape[1:], dtype=mask.dtype, pin_memory=pin))
        self._held = [h.to(self.device) for h in self._host]
        self._shape = index.shape
        if self._side is not None:
            self._free = torch.cuda.current_stream(self.device).record_event()

    def _fill(self, half: int, index: Tensor) -> None:
        """Nothing here may call the device: a graph may be captured at the same time."""
        rows, mask = self.source.rows(index)
        into, *marks = [h.chunk(2)[half] for h in self._host]
        table = self.source.packed.data
        torch.index_select(table, 0, rows.reshape(-1), out=into.view(-1, table.shape[1]))
        if mask is not None:
            marks[0].copy_(mask)

    def _copy(self, half: int) -> None:
        """Bring a half to the GPU, beside the block that trains there, which reads the other."""
        if self._side is None:
            return  # the host's memory is the device's
        training = torch.cuda.current_stream(self.device)
        with self._aside():
            self._side.wait_event(self._free)
            for held, host in zip(self._held, self._host, strict=True):
                held.chunk(2)[half].copy_(host.chunk(2)[half], non_blocking=True)
        training.wait_stream(self._side)
        self._free = training.record_event()  # from here on nobody reads the other half

    def _aside(self) -> AbstractContextManager[object]:
        return nullcontext() if self._side is None else torch.cuda.stream(self._side)
