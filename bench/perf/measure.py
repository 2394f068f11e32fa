"""Programs side by side in one run: all started and warmed, then in turns, one at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.envs.two_step import Layout
from bench.perf.environments import NotInstalled, build, is_built, python_of
from bench.perf.protocol import ProgramError, Remote, Unavailable
from bench.perf.rivals import ENGINE, Rival
from bench.provenance import ROOT
from bench.recipe import load_recipe

_START_SECONDS, _COUNT_SECONDS = 600.0, 1200.0
_SLOWDOWN = 20.0  # CPU seconds can take this much longer where others use the core, too
FULL_RUN_SEEDS = 5
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """Of one measurement. ``warm`` are seconds that every program runs before the first round."""

    rounds: int = 3
    seconds: float = 2.0
    rows: int = 1_000_000
    device: str = "cpu"
    warm: float = 0.5

    @property
    def clock(self) -> str:
        """On a CPU what others do on it must not count; a GPU's time is not the CPU's."""
        return "cpu" if self.device == "cpu" else "wall"

    @property
    def core(self) -> int | None:
        """The one core that all programs run on, in turns (Linux)."""
        if self.device != "cpu" or not hasattr(os, "sched_getaffinity"):
            return None
        return max(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Variant:
    """A program with a number of seeds that it trains at once."""

    rival: Rival
    seeds: int = 1

    @property
    def name(self) -> str:
        return self.rival.name if self.seeds == 1 else f"{self.rival.name}, {self.seeds} seeds"


@dataclass
class Result:
    """What was measured of one program; ``rates`` are gradient steps of all its seeds per second
    of the clock, one of each round."""

    algorithm: str
    program: str
    seeds: int
    missing: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    wall_rates: list[float] = field(default_factory=list)
    memory: int | None = None
    device_memory: int | None = None
    trained: dict[str, int] = field(default_factory=dict)
    counts: dict[str, float] | None = None
    without_metrics: dict[str, float] | None = None

    def add(self, run: Mapping[str, Any], clock: str) -> float:
        steps = run["steps"] * self.seeds
        self.rates.append(steps / run[clock])
        self.wall_rates.append(steps / run["wall"])
        for name in ("memory", "device_memory"):
            if run[name] is not None:
                setattr(self, name, max(run[name], getattr(self, name) or 0))
        return self.rates[-1]


def variants(rivals: Sequence[Rival], seeds: Sequence[int]) -> list[Variant]:
    """The engine with each number of seeds, then the rivals."""
    return [*(Variant(ENGINE, n) for n in seeds), *(Variant(r) for r in rivals)]


def environment() -> dict[str, str]:
    """Of a measured process: one thread, and the project's files to import."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": str(ROOT)}


def place_of(rival: Rival) -> tuple[Path, Path]:
    """A rival's environment, and what it is built from."""
    return ROOT / f".venv-perf-{rival.name}", ROOT / f"bench/perf/rivals/{rival.name}.txt"


def install(rivals: Sequence[Rival]) -> dict[str, str]:
    """Build the environments of these rivals; reasons of those that cannot be."""
    failed = {}
    for rival in rivals:
        if rival.own_environment:
            try:
                build(*place_of(rival))
            except (NotInstalled, OSError, subprocess.CalledProcessError) as error:
                failed[rival.name] = f"cannot be installed: {error}"
    return failed


def start(rival: Rival) -> Remote:
    """A rival's process.

    Raises:
        NotInstalled: its environment is not there.
    """
    python = Path(sys.executable)
    if rival.own_environment:
        folder, requirements = place_of(rival)
        if not requirements.is_file() or not is_built(folder, requirements):
            raise NotInstalled("not installed here (--install builds its environment)")
        python = python_of(folder)
    return Remote([python, "-m", f"bench.perf.rivals.{rival.module}"], environment(), ROOT)


def sizes(algorithm: str) -> dict[str, Any]:
    """The fields of a :class:`bench.perf.work.Work` that an algorithm decides."""
    recipe = load_recipe(algorithm)
    hyper = recipe.hyper()
    found = {"algorithm": algorithm, "discrete": recipe.discrete, "batch": hyper.batch_size}
    if hasattr(hyper, "layout"):
        team = Layout(*hyper.layout)
        found |= {"observation": team.width, "action": team.actions**team.agents}
    return found


class Measurement:
    """One algorithm's programs. A program that fails is left out of what follows, by name."""

    def __init__(
        self,
        algorithm: str,
        settings: Settings,
        say: Say,
        starter: Callable[[Rival], Remote] = start,
    ) -> None:
        self.algorithm, self.settings, self.starter = algorithm, settings, starter
        self.say: Say = lambda text: say(f"{algorithm}: {text}")
        self.running: list[tuple[Variant, Result, Remote]] = []

    def run(self, wanted: Sequence[Variant], failed: Mapping[str, str]) -> list[Result]:
        """Results in the order of ``wanted``; ``failed`` are known reasons by rival."""
        results = []
        with ExitStack() as stack:
            for variant in wanted:
                result = Result(self.algorithm, variant.name, variant.seeds)
                result.missing = failed.get(variant.rival.name)
                results.append(result)
                if result.missing is None:
                    self._start(variant, result, stack)
            for number in range(self.settings.rounds):
                self._round(number)
            self.say("counting")
            self._each(self._count)
        return results

    def _start(self, variant: Variant, result: Result, stack: ExitStack) -> None:
        self.say(f"starting {variant.name}")
        settings = self.settings
        work = {
            **sizes(self.algorithm),
            "rows": settings.rows,
            "seeds": variant.seeds,
            "device": settings.device,
        }
        try:
            remote = self.starter(variant.rival)
            stack.callback(remote.close)
            built = remote.ask("build", timeout=_START_SECONDS, work=work, core=settings.core)
            self._ask_run(remote, settings.warm)
        except (NotInstalled, ProgramError, Unavailable) as reason:
            self._leave_out(variant, result, reason)
            return
        result.versions = built["versions"]
        self.running.append((variant, result, remote))

    def _leave_out(self, variant: Variant, result: Result, reason: Exception) -> None:
        result.missing = str(reason)
        self.say(f"{variant.name} is left out: {reason}")

    def _ask_run(self, remote: Remote, seconds: float) -> dict[str, Any]:
        late = 60 + _SLOWDOWN * seconds
        return remote.ask("run", timeout=late, seconds=seconds, clock=self.settings.clock)

    def _each(self, do: Callable[[Variant, Result, Remote], None], first: int = 0) -> None:
        turns = [*self.running[first:], *self.running[:first]]
        for entry in turns:
            try:
                do(*entry)
            except (ProgramError, Unavailable) as reason:
                self._leave_out(entry[0], entry[1], reason)
                self.running.remove(entry)

    def _round(self, number: int) -> None:
        """Every program once; each round begins with another one."""
        shown: list[str] = []

        def once(variant: Variant, result: Result, remote: Remote) -> None:
            rate = result.add(self._ask_run(remote, self.settings.seconds), self.settings.clock)
            shown.append(f"{variant.name} {rate:.1f}")

        self._each(once, number % max(1, len(self.running)))
        self.say(f"round {number + 1} of {self.settings.rounds}: {', '.join(shown)}")

    def _count(self, variant: Variant, result: Result, remote: Remote) -> None:
        def ask(what: str) -> dict[str, float]:
            return remote.ask("count", timeout=_COUNT_SECONDS, what=what)

        result.trained = remote.ask("check", timeout=_COUNT_SECONDS)
        result.counts = ask("step")
        if variant == Variant(ENGINE):
            result.without_metrics = ask("without_metrics")


def full_run_dataset(algorithm: str) -> str:
    """One of the repository that the algorithm can train on."""
    recipe = load_recipe(algorithm)
    if recipe.families:
        return "lite/twostep/random-v0"
    return "lite/cartpole/replay-v0" if recipe.discrete else "lite/hopper/medium-replay-v0"


def full_run(algorithm: str, device: str, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Wall seconds of ``bench run`` with the paper's steps and evaluations, start-up included."""
    dataset = full_run_dataset(algorithm)
    with tempfile.TemporaryDirectory() as out:
        options = ["--algo", algorithm, "--dataset", dataset, "--profile", "paper"]
        options += ["--seeds", str(FULL_RUN_SEEDS), "--device", device, "--out", out]
        options += ["--no-report", "--no-mlflow", *extra]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "bench", "run", *options],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        seconds = time.perf_counter() - began
    lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    missing = lines[-1] if done.returncode else None
    return {"algorithm": algorithm, "dataset": dataset, "seconds": seconds, "missing": missing}
