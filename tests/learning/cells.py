"""What `make learning` trains: every recipe on the embedded dataset of its kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.plan import Plan, Request, make_plan
from bench.recipe import load_recipe
from bench.recipes import recipe_names
from bench.report.collect import Run, read_run
from bench.store import read_json

SEEDS = 3
CONTINUOUS, DISCRETE = "lite/hopper/medium-replay-v0", "lite/cartpole/replay-v0"
OWN = {"dreamer": "lite/pendulum/random-v0", "qmix": "lite/twostep/random-v0"}
INDEPENDENT = "qmix mixer=none"


@dataclass(frozen=True)
class Cell:
    """An algorithm with its settings, at the quick profile."""

    algorithm: str
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        return " ".join([self.algorithm, *(f"{k}={v}" for k, v in self.settings)])

    @property
    def dataset(self) -> str:
        own = OWN.get(self.algorithm)
        return own or (DISCRETE if load_recipe(self.algorithm).discrete else CONTINUOUS)

    def arguments(self, out: Path) -> list[str]:
        """Of ``bench run``."""
        asked = ["--algo", self.algorithm, "--dataset", self.dataset, "--seeds", f"{SEEDS}"]
        settings = ["--set", *(f"{k}={v}" for k, v in self.settings)] if self.settings else []
        return [*asked, *settings, "--no-report", "--no-mlflow", "--out", str(out)]

    def plan(self, out: Path) -> Plan:
        """What of it is still to be trained, and what is there."""
        request = Request(
            (self.algorithm,), (self.dataset,), seeds=SEEDS, out=out, settings=dict(self.settings)
        )
        return make_plan(request, workers=1)


def cells() -> Iterator[Cell]:
    for name in recipe_names():
        yield Cell(name)
    algorithm, setting = INDEPENDENT.split()
    key, value = setting.split("=")
    yield Cell(algorithm, ((key, value),))


@dataclass(frozen=True)
class Found:
    """The runs of a cell that ended, diverged ones too; ``minutes`` of training them."""

    cell: Cell
    runs: list[Run] = field(default_factory=list)
    minutes: float = 0.0

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.finished]

    @property
    def scores(self) -> list[float]:
        return [run.final for run in self.finished]

    @property
    def returns(self) -> list[float]:
        """Raw ones of the last evaluation."""
        return [_raw(run, run.final) for run in self.finished]


def _raw(run: Run, score: float) -> float:
    if run.reference is None:
        return score
    low, high = run.reference
    return low + score / 100 * (high - low)


def found(cell: Cell, out: Path) -> Found:
    """Only runs of today's settings count. Seeds that trained as one took their time once."""
    folders = cell.plan(out).finished
    groups = {tuple(read_json(f / "config.json")["group"]): f for f in folders}
    seconds = sum(read_json(f / "status.json")["train_seconds"] for f in groups.values())
    return Found(cell, [read_run(out, f) for f in folders], seconds / 60)
