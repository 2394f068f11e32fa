"""Estimates of the policies of a comparison, dataset by dataset (``bench compare --fqe``)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.errors import BenchError
from bench.report.collect import collect
from bench.report.offline import Estimate, Offline
from bench.trained.fqe import Settings, estimate, remembers
from bench.trained.run import WHICH, Trained, data_of, open_run


def evaluate_offline(
    out: Path,
    algos: Iterable[str] | None,
    datasets: Iterable[str] | None,
    settings: Settings,
    device: str = "cpu",
) -> Offline:
    """The last and the best policy of every finished run, as far as they can be estimated.

    Raises:
        RunError: where there are no runs.
    """
    runs: dict[str, list[Trained]] = {}
    units: dict[str, str] = {}
    left_out: list[str] = []
    lost: list[str] = []  # a line for every run of which a policy cannot be read
    for run in collect(out, algos=algos, datasets=datasets).runs:
        if not run.finished:
            continue
        found, memory, why = _policies(run.path)
        left_out += memory
        lost += why
        runs.setdefault(run.dataset, []).extend(found)
        units[run.dataset] = run.unit
    estimates: list[Estimate] = []
    for name, own in runs.items():
        if len(own) < 2:
            left_out.append(f"{name}: fewer than two policies to choose from")
            continue
        try:
            estimates += _estimates(name, own, units[name], settings, device)
        except BenchError as error:
            left_out.append(f"{name}: {error}")
    if lost:
        more = f" (and {len(lost) - 1} more like it)" if len(lost) > 1 else ""
        left_out.append(f"left out: {lost[0]}{more}")
    return Offline(tuple(estimates), tuple(dict.fromkeys(left_out)))


def _policies(path: Path) -> tuple[list[Trained], list[str], list[str]]:
    """Those with a recorded evaluation, and why there are none or fewer: a memory, another reason.
    A best one that is the last one counts once."""
    found: list[Trained] = []
    try:
        for which in WHICH:
            run = open_run(path, which)
            if remembers(run):
                where = f"{run.recipe.label} on {run.config['dataset']}"
                return [], [f"left out: {where}, whose policy remembers what it saw"], []
            if run.recorded is not None and run.step not in [r.step for r in found]:
                found.append(run)
    except BenchError as error:
        return found, [], [str(error)]
    return found, [], []


def _estimates(
    name: str, own: Sequence[Trained], unit: str, settings: Settings, device: str
) -> list[Estimate]:
    def told(step: int) -> None:
        if step % 1000 == 0 or step == settings.steps:
            print(f"{name}: fitted Q evaluation of {len(own)} policies, {step}/{settings.steps}",
                  file=sys.stderr)  # fmt: skip

    dataset = data_of(own[0].path, own[0].config)
    values = estimate(own, dataset, settings, told, device)
    return [
        Estimate(
            name,
            run.config["algorithm"],
            run.recipe.label,
            int(run.config["seed"]),
            run.which,
            run.step,
            value,
            _score(run, unit),
            unit,
        )
        for run, value in zip(own, values, strict=True)
    ]


def _score(run: Trained, unit: str) -> float:
    assert run.recorded is not None
    mean = float(run.recorded.returns.mean())
    score = run.normalized(mean) if unit == "normalized" else mean
    return mean if score is None else score
