"""Small finished runs, made in this process, whose policies are evaluated and exported."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.data import Dataset, load
from bench.engine.cell import Cell
from bench.engine.task import Task
from bench.plan import Request, make_plan
from bench.trained.run import open_run
from tests.bench.runs import pendulum_file

STEPS, INTERVAL, EPISODES = 20, 5, 2
_WINDOWS = {"context": "3", "warmup_steps": "1", "batch_size": "4", "lr": "0.01"}
SMALL = {
    "td3_bc": {"hidden": "8,8", "batch_size": "8", "lr": "0.05"},
    "dqn": {"hidden": "8,8", "batch_size": "8", "lr": "0.05"},
    "qmix": {"hidden": "8", "mixing": "4", "lr": "0.05"},
    "dt": {"width": "8", "layers": "1", **_WINDOWS, "target_returns": "-100,-900"},
    "dreamer": {"belief": "8", "state": "4", "width": "8", "batch_size": "4", "length": "6",
                "horizon": "3", "model_steps": "1", "lr": "0.02", "actor_lr": "0.02"},
}  # fmt: skip
DATA = {"dqn": "lite/cartpole/replay-v0", "qmix": "lite/twostep/random-v0"}


@dataclass(frozen=True)
class Made:
    """A cell of two seeds and what it was trained on."""

    cell: Cell
    data: str
    dataset: Dataset

    @property
    def folders(self) -> list[Path]:
        return [folder.path for folder in self.cell.folders]

    def recorded(self, seed: int) -> dict[int, list[float]]:
        """Returns of each evaluation, by step, read without the code under test."""
        found: dict[int, list[float]] = {}
        with open(self.folders[seed] / "scores.csv") as file:
            for row in csv.DictReader(file):
                found.setdefault(int(row["step"]), []).append(float(row["return"]))
        return found

    def best(self, seed: int) -> int:
        recorded = self.recorded(seed)
        return max(recorded, key=lambda step: sum(recorded[step]))

    def open(self, seed: int = 0, which: str = "last", target: float | None = None) -> Any:
        return open_run(self.folders[seed], which, target=target)


class Factory:
    """Makes each run once."""

    def __init__(self, place: Path) -> None:
        self.place, self.made = place, dict[str, Made]()
        self.file = pendulum_file(place / "pendulum.hdf5")

    def __call__(self, algo: str) -> Made:
        if algo not in self.made:
            self.made[algo] = self.train(algo, self.place / algo)
        return self.made[algo]

    def train(self, algo: str, out: Path, **changes: Any) -> Made:
        data = DATA.get(algo, str(self.file))
        (task,) = make_plan(Request(**{**_request(algo, data, out), **changes}), workers=1).tasks
        return Made(run(task, data), data, load(data))


def _request(algo: str, data: str, out: Path) -> dict[str, Any]:
    return {
        "algorithms": (algo,),
        "datasets": (data,),
        "seeds": 2,
        "steps": STEPS,
        "device": "cpu",
        "settings": SMALL[algo],
        "out": out,
        "eval_interval": INTERVAL,
        "eval_episodes": EPISODES,
    }


def run(task: Task, data: str) -> Cell:
    cell = Cell(task, load(data), lambda event: None)
    cell.run()
    return cell
