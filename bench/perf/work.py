"""What every program does: the same random transitions, sizes and device. Needs torch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from bench.perf.counters import count
from bench.perf.protocol import Program, Unavailable, nothing

EPISODE = 1000  # steps of every episode; all end by a time limit


@dataclass(frozen=True)
class Work:
    """One algorithm on ``rows`` random transitions, a multiple of ``EPISODE``; ``seeds`` of it
    train at once.

    Args:
        observation: numbers of one.
        action: numbers of one, or how many there are if they are ``discrete``.
        batch: transitions, or windows, of a minibatch.
    """

    algorithm: str
    rows: int = 1_000_000
    observation: int = 17
    action: int = 6
    discrete: bool = False
    batch: int = 256
    seeds: int = 1
    device: str = "cpu"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def only_one_seed(self) -> None:
        if self.seeds != 1:
            raise Unavailable("trains one seed per process")


def arrays(work: Work) -> dict[str, Tensor]:
    """Normal observations and rewards, actions in (-1, 1), ``[rows, ...]`` float32 on the CPU, or
    numbered ones, int64 ``[rows]``; ``last`` marks the end of an episode. ``after`` is not the next
    row: nothing here looks."""
    generator = torch.Generator().manual_seed(0)

    def normal(width: int) -> Tensor:
        return torch.randn(work.rows, width, generator=generator)

    def action() -> Tensor:
        if work.discrete:
            return torch.randint(work.action, (work.rows,), generator=generator)
        return normal(work.action).tanh()

    step = torch.arange(work.rows) % EPISODE
    return {
        "observation": normal(work.observation),
        "action": action(),
        "after": normal(work.observation),
        "reward": normal(1),
        "step": step,
        "last": (step == EPISODE - 1).unsqueeze(1),
    }


def check_device(device: str) -> None:
    """One thread; CUDA must be there if asked for."""
    torch.set_num_threads(1)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise Unavailable("its torch sees no CUDA device")


def peak_memory() -> int:
    """Peak bytes on the CUDA device since the last call."""
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def program(
    work: Work,
    step: Callable[[], object],
    weights: Callable[[], Iterable[Tensor]],
    packages: Sequence[str],
) -> Program:
    """A program with the counters and the device's clock; ``weights`` are its trained tensors."""
    cuda = work.device.startswith("cuda")
    return Program(
        step=step,
        weights=lambda: [float(w.detach().double().abs().sum()) for w in weights()],
        versions={p: version(p) for p in ("torch", *packages)},
        counters={"step": lambda updates: count(step, updates)},
        synchronize=torch.cuda.synchronize if cuda else nothing,
        device_memory=peak_memory if cuda else None,
    )
