"""Comparison of finished runs: run folders in; tables, figures and one page out.

Reads the disk only. It imports neither the training code nor torch, and what draws figures is
imported when figures are drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.report.aggregate import Summary
    from bench.report.collect import Collection
    from bench.report.offline import Offline
    from bench.report.overall import Group
    from bench.report.plots import Plot

__all__ = ["compare"]


def compare(
    out: Path,
    *,
    algos: Iterable[str] | None = None,
    datasets: Iterable[str] | None = None,
    echo: bool = True,
    offline: Offline | None = None,
) -> Path:
    """Write the comparison of the runs under ``out`` to ``out/compare`` and return that folder.

    ``algos`` and ``datasets`` are names or globs (all by default). With ``echo`` the table and
    the paths of what was written go to standard output. ``offline`` is what was estimated of the
    runs' policies. Raises RunError where there are no runs.
    """
    from bench.report.collect import collect

    out = Path(out)
    collection = collect(
        out,
        algos=None if algos is None else list(algos),
        datasets=None if datasets is None else list(datasets),
    )
    from bench.report import offline as offline_texts
    from bench.report import overall_tables, plots, tables
    from bench.report.aggregate import summarise
    from bench.report.overall import groups
    from bench.store import atomic_write

    summary = summarise(collection)
    target = out / "compare"
    over = groups(summary)
    drawn = plots.write_plots(summary, target / "plots", over, offline)
    for name, text in _files(collection, summary, over, drawn, offline).items():
        atomic_write(target / name, text)
    if echo:
        text = f"{tables.plain(summary)}\n{overall_tables.plain(over)}\n"
        text += f"{offline_texts.plain(offline)}\n" if offline else ""
        sys.stdout.write(f"{text}{_paths(target, drawn)}\n")
    return target


def _files(
    collection: Collection,
    summary: Summary,
    over: list[Group],
    drawn: list[Plot],
    offline: Offline | None,
) -> dict[str, str]:
    """What is written, by name."""
    from bench.report import html, overall_tables, tables
    from bench.report import offline as texts

    more = {"fqe.csv": texts.frame(offline).to_csv(index=False)} if offline else {}
    section = overall_tables.page_section(over)
    return {
        **more,
        "scores.csv": tables.scores_frame(collection.runs).to_csv(index=False),
        "table.csv": tables.table_frame(summary).to_csv(index=False),
        "aggregate.csv": overall_tables.aggregate_frame(over).to_csv(index=False),
        "improvement.csv": overall_tables.pairs_frame(over).to_csv(index=False),
        "table.md": f"{tables.markdown(summary)}\n{overall_tables.markdown(over)}"
        + (f"\n{texts.markdown(offline)}" if offline else ""),
        "table.tex": f"{tables.latex(summary)}\n{overall_tables.latex(over)}",
        "report.html": html.page(
            summary,
            collection.runs,
            drawn,
            section + (texts.page_section(offline) if offline else ""),
        ),
    }


def _paths(target: Path, drawn: list[Plot]) -> str:
    lines = [f"report:  {target / 'report.html'}", f"tables:  {target / 'table.md'} (.csv, .tex)"]
    lines += [f"plot:    {target / 'plots' / plot.stem}.png (.svg)" for plot in drawn]
    if len(lines) > 12:
        lines = [*lines[:2], f"plots:   {target / 'plots'} ({len(drawn)} figures, .png and .svg)"]
    return "\n".join(lines)
