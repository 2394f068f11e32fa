"""From samples to a page: medians with their range, ratios within a round, Markdown and JSON."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.perf.measure import FULL_RUN_SEEDS, Result, Settings
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


def overview(results: Sequence[Result], peak: float) -> list[str]:
    """A row per algorithm: the engine's speed with one seed, how many times that of each rival."""
    rivals = [r.name for r in RIVALS if any(r.name == found.program for found in results)]
    heads = ["algorithm", "steps/s", "of the peak", *(f"÷ {name}" for name in rivals)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for algorithm, found in by_algorithm(results).items():
        engine = _named(found, ENGINE.name)
        if engine is None or engine.missing is not None:
            continue
        cells = [algorithm, number(statistics.median(engine.rates)), _share(engine, peak)]
        cells += [_times(engine, _named(found, name)) for name in rivals]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def by_algorithm(results: Sequence[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.algorithm, []).append(result)
    return found


def _named(results: Sequence[Result], program: str) -> Result | None:
    return next((r for r in results if r.program == program), None)


def _times(engine: Result, rival: Result | None) -> str:
    if rival is None or rival.missing is not None:
        return _NONE
    return number(statistics.median(ratios(engine, rival)))


def table(results: Sequence[Result], peak: float) -> list[str]:
    """One algorithm's rows. The engine with one seed is what the others are compared with."""
    engine = _named(results, ENGINE.name)
    lines = [
        "| program | steps/s | engine ÷ it | MFLOP per step | of the peak | launches | memory MB |",
        "|---|---|---|---|---|---|---|",
    ]
    return lines + [_row(r, engine, peak) for r in results]


def _row(result: Result, engine: Result | None, peak: float) -> str:
    if result.missing is not None:
        return f"| {result.program} | not measured: {_cell(result.missing)} | | | | | |"
    flops = _NONE if result.counts is None else number(_flops(result) / 1e6)
    compared = engine is not None and engine is not result and result.seeds == 1
    factor = spread(ratios(engine, result)) if compared and engine is not None else _NONE
    share, launches = _share(result, peak), _launches(result)
    cells = (result.program, spread(result.rates), factor, flops, share, launches)
    return f"| {' | '.join(cells)} | {_memory(result)} |"


def _flops(result: Result) -> float:
    """Per step of one seed."""
    assert result.counts is not None
    return result.counts["flops"] / result.seeds


def _share(result: Result, peak: float) -> str:
    """Of the machine's peak."""
    if result.counts is None or not result.rates:
        return _NONE
    return f"{_flops(result) * statistics.median(result.rates) / peak:.0%}"


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
    lines += ["", *overview(report.results, machine["peak"])]
    for algorithm, results in by_algorithm(report.results).items():
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
table run in turns, one at a time, each in a process of its own, warmed. *÷* and *engine ÷ it* (how
many times a program's speed the engine's is) are taken within each round, then their median.

The work: {rows} random transitions in memory (observations of 17 numbers; actions of 6 numbers, or
6 numbered ones; for QMIX two agents in the shape of its two-step game), the recipe's paper profile
without what it changes for single datasets, minibatch sampling included; no environment, no
evaluation. Of algorithms in stages (`ppo` and its like, which clone first) the last stage is
measured. With several seeds at once, steps of all of them are counted.

*MFLOP per step* counts matrix products (two per multiply-add), *launches* the operations that one
update of all seeds sends to the device, views left out, a fused one as one; what TorchRL's buffer
does in threads of its own is not among them. *Memory* is the peak of {memory} while it trains,
transitions included.{on_cpu}"""
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
        f"`bench run --profile paper --seeds {FULL_RUN_SEEDS}`: the paper's steps and evaluations, "
        "from the first line to the last.",
        "",
        "| algorithm | dataset | wall time |",
        "|---|---|---|",
    ]
    for run in runs:
        minutes, seconds = divmod(round(run["seconds"]), 60)
        time = f"{minutes // 60}:{minutes % 60:02}:{seconds:02} h"
        missing = run["missing"]
        shown = time if missing is None else f"not measured: {_cell(missing)}"
        lines.append(f"| {run['algorithm']} | {run['dataset']} | {shown} |")
    return lines
