"""Comparison of finished runs: run folders in; tables, figures and one page out.

Reads the disk only. It imports neither the training code nor torch, and what draws figures is
imported when figures are drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["compare"]


def compare(
    out: Path,
    *,
    algos: Iterable[str] | None = None,
    datasets: Iterable[str] | None = None,
    echo: bool = True,
) -> Path:
    """Write the comparison of the runs under ``out`` to ``out/compare`` and return that folder.

    ``algos`` and ``datasets`` are names or globs (all by default). With ``echo`` the table and
    the paths of what was written go to standard output. Raises RunError where there are no runs.
    """
    from bench.report.collect import collect

    out = Path(out)
    collection = collect(
        out,
        algos=None if algos is None else list(algos),
        datasets=None if datasets is None else list(datasets),
    )
    from bench.report import html, plots, tables
    from bench.report.aggregate import summarise
    from bench.store import atomic_write

    summary = summarise(collection)
    target = out / "compare"
    drawn = plots.write_plots(summary, target / "plots")
    for name, text in {
        "scores.csv": tables.scores_frame(collection.runs).to_csv(index=False),
        "table.csv": tables.table_frame(summary).to_csv(index=False),
        "table.md": tables.markdown(summary),
        "table.tex": tables.latex(summary),
        "report.html": html.page(summary, collection.runs, drawn),
    }.items():
        atomic_write(target / name, text)
    if echo:
        sys.stdout.write(f"{tables.plain(summary)}\n{_paths(target, drawn)}\n")
    return target


def _paths(target: Path, drawn: list) -> str:
    lines = [f"report:  {target / 'report.html'}", f"tables:  {target / 'table.md'} (.csv, .tex)"]
    lines += [f"plot:    {target / 'plots' / plot.stem}.png (.svg)" for plot in drawn]
    if len(lines) > 12:
        lines = [*lines[:2], f"plots:   {target / 'plots'} ({len(drawn)} figures, .png and .svg)"]
    return "\n".join(lines)
