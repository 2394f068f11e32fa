"""From samples to a page: medians with their range, ratios within a round, Markdown and JSON."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.perf.measure import FULL_RUN_DATASET, FULL_RUN_SEEDS, Result, Settings
from bench.perf.rivals import ENGINE, RIVALS

_NONE = "–"
SCHEMA = 1


@dataclass
class Report:
    """All that a page says."""

    machine: dict[str, Any]
    settings: Settings
    command: str
    commit: str
    date: str
    results: list[Result] = field(default_factory=list)
    full_runs: list[dict[str, Any]] = field(default_factory=list)

    def write(self, page: Path) -> None:
        """The page, and a JSON file of the same name beside it with every sample."""
        page.write_text(markdown(self), encoding="utf-8")
        data = {"schema": SCHEMA, **asdict(self)}
        page.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def spread(values: Sequence[float]) -> str:
    """Median [least, greatest], in three digits."""
    if not values:
        return _NONE
    middle = statistics.median(values)
    return f"{number(middle)} [{number(min(values))}, {number(max(values))}]"


def number(value: float) -> str:
    """Three digits or all that stand before the point."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}".replace(",", " ")


def ratios(first: Result, second: Result) -> list[float]:
    """``first`` over ``second``, round by round: what slows a whole round cancels."""
    pairs = zip(first.rates, second.rates, strict=False)
    return [a / b for a, b in pairs]


def table(results: Sequence[Result], peak: float) -> list[str]:
    """One algorithm's rows. The engine with one seed is what the others are compared with."""
    engine = next((r for r in results if r.program == ENGINE.name), None)
    lines = [
        "| program | steps/s | engine ÷ it | MFLOP per step | of the peak | launches | memory MB |",
        "|---|---|---|---|---|---|---|",
    ]
    return lines + [_row(r, engine, peak) for r in results]


def _row(result: Result, engine: Result | None, peak: float) -> str:
    if result.missing is not None:
        return f"| {result.program} | not measured: {_cell(result.missing)} | | | | | |"
    flops = share = _NONE
    if result.counts is not None:
        per_step = result.counts["flops"] / result.seeds
        flops = number(per_step / 1e6)
        share = (
            f"{per_step * statistics.median(result.rates) / peak:.0%}" if result.rates else _NONE
        )
    compared = engine is not None and engine is not result and result.seeds == 1
    factor = spread(ratios(engine, result)) if compared and engine is not None else _NONE
    cells = (result.program, spread(result.rates), factor, flops, share, _launches(result))
    return f"| {' | '.join(cells)} | {_memory(result)} |"


def _launches(result: Result) -> str:
    if result.counts is None:
        return _NONE
    text = f"{result.counts['launches']:g}"
    if result.without_metrics is not None:
        text += f" ({result.without_metrics['launches']:g} without metrics)"
    return text


def _memory(result: Result) -> str:
    found = result.memory if result.device_memory is None else result.device_memory
    return _NONE if found is None else f"{found / 1e6:.0f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def markdown(report: Report) -> str:
    machine, settings = report.machine, report.settings
    name = machine["gpu"] or machine["cpu"]
    lines = [f"# Training speed on {name}", "", "```sh", report.command, "```", ""]
    lines += [*_facts(machine), f"- commit {report.commit}, {report.date}", "", *_method(settings)]
    for algorithm in dict.fromkeys(r.algorithm for r in report.results):
        results = [r for r in report.results if r.algorithm == algorithm]
        lines += ["", f"## {algorithm}", "", *table(results, machine["peak"])]
    lines += ["", "## Programs", "", *_programs(report.results)]
    if report.full_runs:
        lines += ["", "## Whole runs", "", *_full_runs(report.full_runs)]
    return "\n".join(lines) + "\n"


def _facts(machine: Mapping[str, Any]) -> list[str]:
    memory = machine["memory"]
    size = f", {memory / 2**30:.0f} GiB" if memory else ""
    peaks = ", ".join(f"{v / 1e9:.0f} GFLOP/s {k}" for k, v in machine["peaks"].items())
    where = "on the GPU" if machine["gpu"] else "on one core"
    return [
        f"- {machine['cpu']}, {machine['cores']} cores{size}; {machine['system']}",
        f"- Python {machine['python']}, torch {machine['torch']}",
        f"- float32 matrix products {where}: {peaks}; the peak below is "
        f"{machine['peak'] / 1e9:.0f} GFLOP/s",
    ]


_METHOD = """\
Gradient steps per {unit}: median [least, greatest] of {rounds} of {seconds:g} s. All programs of a
table run in turns, one at a time, each in a process of its own, warmed. *engine ÷ it* is taken
within each round.

The work: {rows} random transitions in memory (17 observations, 6 actions), the recipe's paper
profile, minibatch sampling included; no environment, no evaluation. With several seeds at once,
steps of all of them are counted.

*MFLOP per step* counts matrix products (two per multiply-add), *launches* the operations that one
update of all seeds sends to the device, views left out, a fused one as one. *Memory* is the peak of
{memory} while it trains, transitions included.{on_cpu}"""
_ON_CPU = """ The rivals' Adam is torch's default: on a CPU it treats one tensor after the other.

Not measured here: a GPU's 1, 8 and 64 seeds at once and its whole runs (`--device cuda`)."""


def _method(settings: Settings) -> list[str]:
    cpu = settings.device == "cpu"
    text = _METHOD.format(
        unit="CPU second of one thread, all on the same core"
        if cpu
        else "second, the device synchronised before and after",
        rounds="1 round" if settings.rounds == 1 else f"{settings.rounds} rounds",
        seconds=settings.seconds,
        rows=f"{settings.rows:,}".replace(",", " "),
        on_cpu=_ON_CPU if cpu else "",
        memory="resident memory" if cpu else "device memory",
    )
    return [line for part in text.split("\n\n") for line in (*textwrap.wrap(part, 110), "")][:-1]


def _programs(results: Sequence[Result]) -> list[str]:
    lines = []
    for rival in (ENGINE, *RIVALS):
        found = [r for r in results if r.program == rival.name]
        versions = next((r.versions for r in found if r.versions), {})
        spelled = ", ".join(f"{k} {v}" for k, v in versions.items())
        if found:
            lines.append(f"- **{rival.name}**: {rival.about}{f' ({spelled})' if spelled else ''}")
    return lines


def _full_runs(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"`bench run --profile paper --seeds {FULL_RUN_SEEDS} --dataset {FULL_RUN_DATASET}`: the "
        "paper's steps and evaluations, from the first line to the last.",
        "",
        "| algorithm | wall time |",
        "|---|---|",
    ]
    for run in runs:
        minutes, seconds = divmod(round(run["seconds"]), 60)
        time = f"{minutes // 60}:{minutes % 60:02}:{seconds:02} h"
        missing = run["missing"]
        shown = time if missing is None else f"not measured: {_cell(missing)}"
        lines.append(f"| {run['algorithm']} | {shown} |")
    return lines
