"""What a plan will take: time and memory of every cell from a short calibration on this machine,
and which part of it a budget of time is best spent on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.engine.calibrate import Speed
from bench.engine.task import Task
from bench.errors import ConfigError, RunError
from bench.plan import Plan
from bench.store import RunFolder, atomic_write, read_json

FULL_EPISODE = 1000  # steps, where neither data nor environment say how long an episode may be
_ROUNDS = (
    (1, "one seed of every cell: a table without holes"),
    (3, "three seeds: from here on there are intervals and tests"),
    (5, "five seeds: what most papers report"),
)


@dataclass(frozen=True)
class Cost:
    """Of a task that is still to be trained: seconds and bytes of its process, and what they are
    made of. ``device_memory`` is that of a GPU."""

    task: Task
    speed: Speed
    done: int  # updates
    episode: int  # steps of a full one

    @property
    def training(self) -> float:
        """Seconds of the updates that are left."""
        borders = [first for first, _ in self.speed.stages] + [self.task.steps + 1]
        spans = zip(borders, borders[1:], self.speed.stages, strict=False)
        return sum(max(0, end - max(first, self.done + 1)) * s for first, end, (_, s) in spans)

    @property
    def evaluating(self) -> float:
        """Seconds of the evaluations that are left, were all episodes full ones."""
        task = self.task
        whole, last = divmod(task.steps, task.eval_interval)
        left = whole + (last > 0) - self.done // task.eval_interval
        policies = len(task.hyper.get("target_returns", ())) or 1
        steps = self.episode * task.eval_episodes * len(task.seeds) * policies
        return left * steps * self.speed.env_step / max(1, task.eval_workers)

    @property
    def seconds(self) -> float:
        """Evaluations of worker processes go on beside training."""
        beside = self.task.eval_workers > 0
        rest = max(self.training, self.evaluating) if beside else self.training + self.evaluating
        return self.speed.start + rest

    @property
    def rate(self) -> float:
        """Updates per second, of all seeds of the task together, over the whole run."""
        return (self.task.steps - self.done) / max(self.training, 1e-9)


# ----------------------------------------------------------------------------- calibration


class Calibration:
    """Speeds of tasks, measured once per program and machine and kept in ``OUT/cache/speed.json``.

    Args:
        out: the results folder.
        workers: how many are measured at once: as many as will train at once, since they share
            the machine.
    """

    def __init__(self, out: Path, workers: int) -> None:
        self.path, self.workers = out / "cache" / "speed.json", workers
        self._known: dict[str, Any] = read_json(self.path) if self.path.exists() else {}

    def speeds(self, tasks: Sequence[Task], say: Callable[[str], None]) -> list[Speed]:
        """Of each task, in order.

        Raises:
            RunError, ConfigError: for a task that could not be measured, with its own error.
        """
        keys = [self._key(task) for task in tasks]
        missing = {k: t for k, t in zip(keys, tasks, strict=True) if k not in self._known}
        if missing:
            many = "a program" if len(missing) == 1 else f"{len(missing)} programs"
            say(f"measuring the speed of {many}, about 20 s each")
            with ThreadPoolExecutor(self.workers) as pool:
                found = pool.map(_measured, missing.values())
                for n, (key, task) in enumerate(missing.items(), 1):
                    self._known[key] = asdict(next(found))
                    atomic_write(self.path, json.dumps(self._known, indent=1))
                    say(f"[{n} of {len(missing)}] {task.name}")
        return [Speed.from_json(self._known[key]) for key in keys]

    def _key(self, task: Task) -> str:
        """What speed depends on; another machine or program is measured anew."""
        record = task.record
        what = [
            *(task.algorithm, task.config, task.dataset, len(task.seeds), task.steps),
            *(task.device, task.compile, task.tf32, task.data_memory, self.workers),
            *(record["code"], record["versions"].get("torch"), _machine(task.device)),
        ]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]


def _machine(device: str) -> str:
    from bench.engine.cpu import model_name

    if device == "cpu":
        return model_name()
    import torch

    return torch.cuda.get_device_name(device)


def _measured(task: Task) -> Speed:
    command = [sys.executable, "-m", "bench.engine.calibrate"]
    ended = subprocess.run(
        command, input=json.dumps(task.to_json()), capture_output=True, text=True, check=False
    )
    lines = ended.stdout.splitlines()
    answer = json.loads(lines[-1]) if lines else {}
    if "error" in answer:
        raise ConfigError(f"{task.name}: {answer['error']}")
    if ended.returncode or not answer:
        last = (ended.stderr.strip().splitlines() or [f"ended with status {ended.returncode}"])[-1]
        raise RunError(f"{task.name}: its speed could not be measured: {last}")
    return Speed.from_json(answer)


def costs(plan: Plan, calibration: Calibration, say: Callable[[str], None]) -> list[Cost]:
    """Of every task of a plan. Raises as :meth:`Calibration.speeds`."""
    speeds = calibration.speeds(plan.tasks, say)
    pairs = zip(plan.tasks, speeds, strict=True)
    return [Cost(task, speed, _done(task), _episode(task)) for task, speed in pairs]


def _done(task: Task) -> int:
    """Up to which update every seed of the task is trained and saved."""
    name, out = task.record["dataset"], Path(task.out)
    seeds = [RunFolder(out, name, task.algorithm, task.config, s).status() for s in task.seeds]
    return min(int(status["step"]) if status else 0 for status in seeds)


def _episode(task: Task) -> int:
    """Steps that an evaluation's episode may have."""
    if task.record["env_id"] is None:
        return 0
    if task.record["horizon"] is not None:
        return int(task.record["horizon"])
    from bench import envs

    envs.register(task.record["env_id"])
    import gymnasium

    limit = gymnasium.spec(task.record["env_id"]).max_episode_steps
    return limit or FULL_EPISODE


# -------------------------------------------------------------------------------- schedule


def makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last of these tasks ends, if each starts as soon as a worker is free, in order."""
    free = [0.0] * workers
    for duration in seconds:
        free[free.index(min(free))] += duration
    return max(free)


def most_memory(found: Sequence[Cost], workers: int) -> int:
    """Bytes of the largest processes that may run at once."""
    return sum(sorted((c.speed.memory for c in found), reverse=True)[:workers])


# ---------------------------------------------------------------------------------- budget


@dataclass(frozen=True)
class Step:
    """A part of a budget: these cells get seeds up to ``seeds``; ``seconds`` of one worker."""

    why: str
    seeds: int
    cells: tuple[tuple[str, str], ...]  # (dataset as it was asked for, algorithm)
    seconds: float


@dataclass(frozen=True)
class Choice:
    """What a budget buys: seeds per cell, step by step, and the cells that get none."""

    steps: tuple[Step, ...]
    seeds: Mapping[tuple[str, str], int]
    left_out: tuple[tuple[str, str], ...]


def choose(found: Sequence[Cost], budget: float, workers: int) -> Choice:
    """The most informative part of a plan that ``workers`` end within ``budget`` seconds.

    Seeds come in rounds: a comparison learns most from a cell's first seed, then from what makes
    an interval possible. Within a round datasets are taken whole where they can be, the cheapest
    first: a dataset compares algorithms that are all on it. On a GPU the seeds of a cell train as
    one program and cost what one of them costs: there is one round, of all.
    """
    cells = _cells(found)
    missing = {cell: [s for c in own for s in c.task.seeds] for cell, own in cells.items()}
    wanted = {cell: max(seeds) + 1 for cell, seeds in missing.items()}
    have = {cell: min(seeds) for cell, seeds in missing.items()}
    begun, steps, spent = dict(have), [], 0.0
    for seeds, why in _rounds(max(wanted.values(), default=0), found):
        for bundle in _bundles(cells, have, wanted, seeds):
            taken = []
            for cell in bundle:
                more = {**have, cell: min(seeds, wanted[cell])}
                if makespan([c.seconds for c in with_seeds(found, more)], workers) <= budget:
                    have = more
                    taken.append(cell)
            if taken:
                total = sum(c.seconds for c in with_seeds(found, have))
                steps.append(Step(why, seeds, tuple(taken), total - spent))
                spent = total
    return Choice(tuple(steps), have, tuple(c for c in cells if have[c] == begun[c]))


def _cells(found: Sequence[Cost]) -> dict[tuple[str, str], list[Cost]]:
    cells: dict[tuple[str, str], list[Cost]] = {}
    for cost in found:
        cells.setdefault((cost.task.dataset, cost.task.algorithm), []).append(cost)
    return cells


def _rounds(most: int, found: Sequence[Cost]) -> Iterator[tuple[int, str]]:
    if any(c.task.device != "cpu" for c in found):
        yield most, "all seeds: on a GPU they cost what one of them costs"
        return
    yield from ((n, why) for n, why in _ROUNDS if n < most)
    last = dict(_ROUNDS).get(most, "all seeds that were asked for")
    yield most, last


def _bundles(
    cells: Mapping[tuple[str, str], list[Cost]],
    have: Mapping[tuple[str, str], int],
    wanted: Mapping[tuple[str, str], int],
    seeds: int,
) -> list[list[tuple[str, str]]]:
    """The cells of each dataset that lack seeds, cheapest first, and so the datasets."""
    by_dataset: dict[str, list[tuple[str, str]]] = {}
    for cell in cells:
        if have[cell] < min(seeds, wanted[cell]):
            by_dataset.setdefault(cell[0], []).append(cell)

    def price(cell: tuple[str, str]) -> float:
        return _price(cells[cell], have[cell], min(seeds, wanted[cell]))

    ordered = [sorted(bundle, key=price) for bundle in by_dataset.values()]
    return sorted(ordered, key=lambda bundle: sum(map(price, bundle)))


def _price(own: Sequence[Cost], have: int, seeds: int) -> float:
    """Seconds of the seeds ``have`` to ``seeds - 1`` of a cell: shares of their groups."""
    total = 0.0
    for cost in own:
        new = sum(have <= s < seeds for s in cost.task.seeds)
        share = new / len(cost.task.seeds) if cost.task.device == "cpu" else min(new, 1)
        total += share * cost.seconds
    return total


def with_seeds(found: Sequence[Cost], seeds: Mapping[tuple[str, str], int]) -> list[Cost]:
    """The tasks with the first so many seeds of each cell; seconds in proportion."""
    kept = []
    for cost in found:
        most = seeds[cost.task.dataset, cost.task.algorithm]
        mine = tuple(s for s in cost.task.seeds if s < most)
        if mine:
            part = len(mine) / len(cost.task.seeds) if cost.task.device == "cpu" else 1.0
            stages = tuple((first, s * part) for first, s in cost.speed.stages)
            speed = replace(cost.speed, stages=stages)
            kept.append(replace(cost, task=replace(cost.task, seeds=mine), speed=speed))
    return kept
