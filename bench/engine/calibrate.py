"""How fast a task trains here: a few seconds of it, which leave nothing in its folders.

Reads a task as JSON from standard input and prints one JSON object, see :class:`Speed`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bench.engine.worker import die_with_parent
from bench.errors import BenchError

_MOST_SECONDS = 3.0  # of measuring one stage; a single update may take longer


@dataclass(frozen=True)
class Speed:
    """What a task costs.

    Args:
        start: seconds until the first update: imports, data, networks, tracing.
        stages: ``(first update, seconds per update of all seeds)`` of every stretch of training in
            which the same phases run, ascending.
        env_step: seconds per step of one evaluation episode, its share of the policy's calls
            included; 0 where there is nothing to evaluate in.
        memory: peak bytes of the process.
        device_memory: of a GPU, peak bytes that its tensors took.
    """

    start: float
    stages: tuple[tuple[int, float], ...]
    env_step: float
    memory: int
    device_memory: int = 0

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Speed:
        return cls(**{**data, "stages": tuple((int(n), float(s)) for n, s in data["stages"])})


def measure(task: Any, began: float) -> Speed:
    """Of the task's own trainer and evaluations. ``began`` on the clock of ``perf_counter``.

    Raises:
        BenchError: what training would raise.
    """
    import torch

    from bench.data import load
    from bench.engine import cpu
    from bench.engine.cell import Cell

    if task.device == "cpu":
        cpu.prepare()
    torch.backends.cuda.matmul.allow_tf32 = task.tf32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = load(task.dataset, env_id=task.env_id, strict=task.strict)
    cell = Cell(task, dataset, lambda event: None)
    trainer, cuda = cell.trainer, task.device != "cpu"
    wait = torch.cuda.synchronize if cuda else lambda: None
    trainer.update()
    wait()
    start = time.perf_counter() - began
    borders = sorted({p.phase.first for p in trainer.phases} | {1})
    stages = []
    for first in (b for b in borders if b <= task.steps):
        trainer.step = first - 1
        stages.append((first, _per_update(trainer, wait)))
    env_step = _env_step(cell)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    most = torch.cuda.max_memory_allocated() if cuda else 0
    return Speed(start, tuple(stages), env_step, memory, most)


def _per_update(trainer: Any, wait: Callable[[], None]) -> float:
    """Seconds, after a first block: programs are compiled and graphs captured in it."""
    block = trainer.noise.size if trainer.graphs else 1
    for _ in range(2):
        trainer.advance(block)
    wait()
    updates, began, before = 0, time.perf_counter(), trainer.step
    while time.perf_counter() - began < _MOST_SECONDS:
        trainer.advance(block)
        wait()
        updates = trainer.step - before
    return (time.perf_counter() - began) / updates


def _env_step(cell: Any) -> float:
    """Of an evaluation with what the networks know by now."""
    cell._prepare_evaluation()
    if cell.runner is None:
        return 0.0
    try:
        began = time.perf_counter()
        (found, *_) = cell.runner.start(cell.trainer.step, cell.trainer.tensors)
        steps = found.result().lengths.sum()
        return float((time.perf_counter() - began) / steps)
    finally:
        cell.runner.close()


def main() -> int:
    began = time.perf_counter()
    die_with_parent()
    from bench.engine.task import Task

    task = Task.from_json({**json.load(sys.stdin), "eval_workers": 0})
    try:
        print(json.dumps(asdict(measure(task, began))), flush=True)
    except BenchError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
