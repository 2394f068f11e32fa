"""Many updates as one CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from bench.engine.trainer import Trainer

Replay = Callable[[], None]
Capture = Callable[[Replay], Replay]  # work on tensors that stay where they are -> its repetition


def cuda_graph(work: Replay) -> Replay:
    """What ``work`` launches, as one launch. Nothing runs before the first call."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class CaptureError(RuntimeError):
    """A block of updates cannot be captured."""


class Graphs:
    """Runs a trainer's updates a noise block at a time, captured.

    Indices, noise and learning rates of a block go into tensors that the graph reads, so a replay
    computes what the same updates one by one would. A block that starts at another place in the
    cycle of the phases' ``every`` needs a graph of its own.
    """

    def __init__(self, trainer: Trainer, capture: Capture = cuda_graph) -> None:
        self.trainer, self.capture = trainer, capture
        self.size = trainer.noise.size
        self._cycle = math.lcm(*(p.phase.every for p in trainer.phases))
        self._replays: dict[int, Replay] = {}
        self._first: int | None = None  # step at which updates began

    def fits(self, limit: int) -> bool:
        """Whether the next block may run whole: it starts here, ends within ``limit`` updates, and
        every kind of update ran before (a graph cannot hold what is set up at a first call)."""
        step = self.trainer.step
        self._first = step if self._first is None else self._first
        warm = step - self._first >= self._cycle
        return warm and step % self.size == 0 and limit >= self.size

    def run(self) -> None:
        """One block of updates.

        Raises:
            CaptureError: when it cannot be captured; nothing has run then.
        """
        trainer, start = self.trainer, self.trainer.step
        trainer.load(start + 1)
        place = start % self._cycle
        if place not in self._replays:
            try:
                self._replays[place] = self.capture(lambda: self._work(place))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise CaptureError(f"no graph: {str(error).splitlines()[0]}") from error
        self._replays[place]()
        trainer.passed(self.size)

    def _work(self, place: int) -> None:
        for row in range(self.size):
            self.trainer.run_row(row, place + row + 1)
