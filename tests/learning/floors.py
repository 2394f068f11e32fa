"""Levels that recipes must reach, judged on the mean of the seeds."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from bench.data import load
from bench.dreams import measure
from bench.report.collect import Run
from bench.report.stats import mean, sd
from tests.learning.cells import INDEPENDENT, SEEDS, Found

OFFLINE = ("td3_bc", "iql", "xql", "cql", "cal_ql", "awac", "sac_n", "edac", "rebrac")
CARTPOLE = ("dqn", "c51", "discrete_cql", "discrete_iql")
CONTEXT = 16  # steps that a world model sees before it imagines
RANDOM = "lite/pendulum/random-v0"

Table = Mapping[str, Found]
Verdict = tuple[str, bool]  # what was found, and whether that reaches the floor


@dataclass(frozen=True)
class Floor:
    """``judge`` looks at the cells named in ``reads``."""

    key: str
    wanted: str
    reads: tuple[str, ...]
    judge: Callable[[Table], Verdict]

    def verdict(self, table: Table) -> Verdict | None:
        """None while a run is missing. A seed that diverged has missed every floor."""
        read = [table[name] for name in self.reads]
        if any(len(f.runs) < SEEDS for f in read):
            return None
        lost = [f.cell.name for f in read if len(f.finished) < SEEDS]
        return (f"seeds diverged: {', '.join(lost)}", False) if lost else self.judge(table)


def floors() -> list[Floor]:
    better = [
        Floor(f"{n}-above-bc", f"`{n}` scores more than `bc`", (n, "bc"), partial(above_bc, name=n))
        for n in OFFLINE
    ]
    pole = [
        Floor(f"{n}-cartpole", f"`{n}` returns at least 400 of 500", (n,), partial(poles, name=n))
        for n in CARTPOLE
    ]
    own = [
        Floor("dt-target", "`dt` returns more when more is asked for", ("dt",), obeys),
        Floor(
            "dreamer-model",
            "`dreamer`: imagined returns of held-out sequences rank as real ones, Spearman ≥ 0.5",
            ("dreamer",),
            imagines,
        ),
        Floor("dreamer-policy", "`dreamer` returns 3 sd above random", ("dreamer",), acts),
        Floor("qmix-game", "`qmix` earns the 8 of the two-step game", ("qmix",), cooperates),
        Floor("independent-game", "there `mixer=none` earns at most 7", (INDEPENDENT,), alone),
    ]
    return better + pole + own


def above_bc(table: Table, name: str) -> Verdict:
    own, clone = mean(table[name].scores), mean(table["bc"].scores)
    return f"{own:.1f} against {clone:.1f}", own > clone


def poles(table: Table, name: str) -> Verdict:
    value = mean(table[name].returns)
    return f"{value:.0f}", value >= 400


def obeys(table: Table) -> Verdict:
    asked = [at_targets(run) for run in table["dt"].runs]
    high, low = max(asked[0]), min(asked[0])
    got = {target: mean([a[target] for a in asked]) for target in (high, low)}
    return f"{got[high]:.0f} of {high:g}, {got[low]:.0f} of {low:g}", got[high] > got[low]


def at_targets(run: Run) -> dict[float, float]:
    """The mean return of the last evaluation for each return asked for."""
    name = "eval/return_at_"
    with open(run.path / "metrics.csv", newline="") as file:
        rows = [r for r in csv.reader(file) if r[1].startswith(name)]
    last = max(int(step) for step, *_ in rows)
    return {float(k.removeprefix(name)): float(v) for step, k, v in rows if int(step) == last}


def imagines(table: Table) -> Verdict:
    ranks = [measure(run.path, None, CONTEXT, None).spearman for run in table["dreamer"].runs]
    return f"{mean(ranks):.2f} ({', '.join(f'{r:.2f}' for r in ranks)})", mean(ranks) >= 0.5


def acts(table: Table) -> Verdict:
    """The spread is that of the returns of single episodes of uniform actions."""
    data = load(RANDOM).transitions
    reward, episode = data["next", "reward"].squeeze(-1), data["episode"]
    returns = [float(reward[episode == e].sum()) for e in episode.unique()]
    bound, value = mean(returns) + 3 * sd(returns), mean(table["dreamer"].returns)
    return f"{value:.0f}; {mean(returns):.0f} + 3 · {sd(returns):.0f} = {bound:.0f}", value >= bound


def cooperates(table: Table) -> Verdict:
    value = mean(table["qmix"].returns)
    return f"{value:.2f}", value > 8 - 1e-3


def alone(table: Table) -> Verdict:
    value = mean(table[INDEPENDENT].returns)
    return f"{value:.2f}", value < 7 + 1e-3
