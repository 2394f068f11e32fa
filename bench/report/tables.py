"""One summary as Markdown, LaTeX (booktabs), CSV and text for a terminal.

Names come from outside (datasets, labels): each format escapes them in its own way.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.report import stats
from bench.report.aggregate import Cell, Column, Summary, spell_steps
from bench.report.collect import Run
from bench.report.notes import QUICK

if TYPE_CHECKING:
    import pandas as pd

DATASET_ROW = "dataset (mean return of its behaviour)"
UNITS = {"normalized": "normalized score", "return": "return"}
CAPTION = (
    "Final evaluation over finished seeds (n): mean ± 95 % interval (Student's t) from three seeds "
    "on, mean and [lowest, highest] for two. Rank by mean within a dataset and a profile; steps "
    "may differ. A cell with a seed that failed, diverged or has no score is not ranked. Bold: the "
    "best, where Welch's t-tests support its difference to every other ranked cell at 5 % (Holm's "
    "correction over the datasets; two seeds each at least) and no cell without a rank reaches it."
)


@dataclass(frozen=True)
class View:
    """What a cell says, before any format: '48.3 ± 2.1', 'n=3, rank 1 of 4'."""

    value: str
    detail: str
    bold: bool = False


def number(value: float | None, decimals: int) -> str:
    """A rounded number with a true minus sign; '–' for none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "−")


def view(cell: Cell | None, column: Column) -> View:
    """The words of one cell; an empty one for a pair without runs."""
    if cell is None:
        return View("", "")
    value = number(cell.mean, column.decimals)
    if cell.n > 1:
        value += " " + _interval(cell, column.decimals)
    return View(value, ", ".join([*_seeds(cell), *_rank(cell)]), cell.bold)


def _interval(cell: Cell, decimals: int) -> str:
    low, high = cell.interval
    if cell.n < stats.FEWEST_FOR_T:
        return f"[{number(low, decimals)}, {number(high, decimals)}]"
    return f"± {number((high - low) / 2, decimals)}"


def _seeds(cell: Cell) -> list[str]:
    detail = []
    if cell.n < len(cell.runs):
        detail.append(f"{cell.n}/{len(cell.runs)} seeds: {cell.missing()}")
    if cell.n == 1:
        detail.append("n=1, no interval")
    elif cell.n == len(cell.runs):
        detail.append(f"n={cell.n}")
    return detail


def _rank(cell: Cell) -> list[str]:
    if cell.rank is None:
        survivors = "survivors only: " if cell.n else ""
        return [f"{survivors}no rank"] if cell.lost else []
    unranked = [f"{cell.unranked} without a rank"] if cell.unranked else []
    return [f"rank {cell.rank} of {cell.ranked}", *unranked]


def caption(summary: Summary) -> str:
    """The general caption, the units, and the notes that every output must carry."""
    units = sorted({UNITS[column.unit] for column in summary.columns})
    text = f"{CAPTION} Unit: {' or '.join(units)}."
    return f"{text} {QUICK[0].upper()}{QUICK[1:]}." if summary.quick else text


# -- Markdown ------------------------------------------------------------------------------------


def escape_markdown(text: str) -> str:
    """Text that shows as itself in a Markdown table cell."""
    plain = re.sub(r"\s+", " ", text)
    plain = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", plain)
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown(summary: Summary) -> str:
    """Algorithms down, datasets across, with caption and notes."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    titles = [f"{escape_markdown(c.title)}<br>{UNITS[c.unit]}" for c in summary.columns]
    lines = [line(["algorithm", *titles]), line(["---", *["---:"] * len(titles)])]
    for row in summary.rows:
        cells = []
        for column in summary.columns:
            v = view(summary.cells.get((row.key, column.key)), column)
            value = f"**{v.value}**" if v.bold else v.value
            cells.append(f"{value}<br>{escape_markdown(v.detail)}" if v.detail else value)
        lines.append(line([escape_markdown(row.label), *cells]))
    lines.append(line([f"*{DATASET_ROW}*", *_references(summary)]))
    notes = [f"- {escape_markdown(note)}" for note in summary.notes]
    return "\n".join([*lines, "", escape_markdown(caption(summary)), "", *notes]).rstrip() + "\n"


def _references(summary: Summary) -> list[str]:
    return [number(column.reference, column.decimals) for column in summary.columns]


# -- LaTeX ---------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": r"--",
}


def escape_latex(text: str) -> str:
    """Text that typesets as itself, with any document class; other characters stay UTF-8."""
    plain = re.sub(r"[\s\x00-\x1f\x7f]+", " ", text)
    return "".join(_LATEX.get(character, character) for character in plain)


def latex(summary: Summary) -> str:
    """A ``table`` environment: ``\\input`` it after ``\\usepackage[T1]{fontenc}`` and booktabs."""
    titles = [escape_latex(column.title) for column in summary.columns]
    units = [escape_latex(UNITS[column.unit]) for column in summary.columns]
    body = []
    for row in summary.rows:
        cells = []
        for column in summary.columns:
            v = view(summary.cells.get((row.key, column.key)), column)
            value = escape_latex(v.value)
            value = rf"\textbf{{{value}}}" if v.bold else value
            cells.append(
                value + (rf" {{\scriptsize ({escape_latex(v.detail)})}}" if v.detail else "")
            )
        body.append(" & ".join([escape_latex(row.label), *cells]) + r" \\")
    references = [escape_latex(text) for text in _references(summary)]
    notes = "; ".join(summary.notes)
    words = escape_latex(f"{caption(summary)} Notes: {notes}." if notes else caption(summary))
    return "\n".join(
        [
            r"% needs \usepackage[T1]{fontenc} and \usepackage{booktabs}",
            r"\begin{table}[t]",
            r"\centering\small",
            rf"\caption{{{words}}}",
            rf"\begin{{tabular}}{{l{'r' * len(titles)}}}",
            r"\toprule",
            " & ".join(["Algorithm", *titles]) + r" \\",
            " & ".join(["", *(rf"{{\scriptsize {unit}}}" for unit in units)]) + r" \\",
            r"\midrule",
            *body,
            r"\midrule",
            " & ".join([rf"\emph{{{escape_latex(DATASET_ROW)}}}", *references]) + r" \\",
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


# -- CSV -----------------------------------------------------------------------------------------

SCORE_FIELDS = [
    *("algorithm", "config", "dataset", "env", "seed", "steps", "profile", "unit"),
    *("final", "last10", "best", "state"),
]


def scores_frame(runs: list[Run]) -> pd.DataFrame:
    """One row per run; the columns of scores.csv."""
    import pandas as pd

    frame = pd.DataFrame([{name: getattr(r, name) for name in SCORE_FIELDS} for r in runs])
    return frame[SCORE_FIELDS].astype({"steps": "Int64"})


def table_frame(summary: Summary) -> pd.DataFrame:
    """One row per cell and one per dataset reference: the numbers behind the other tables."""
    import pandas as pd

    records = []
    for column in summary.columns:
        records += [
            {"row": row.label, **_record(cell, column)}
            for row, cell in summary.column_cells(column)
        ]
        if column.reference is not None:
            records.append({"row": "dataset", **_place(column), "mean": column.reference})
    frame = pd.DataFrame(records)
    whole = [name for name in ("steps", "n", "seeds", "rank", "ranked") if name in frame]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def _place(column: Column) -> dict[str, Any]:
    random, expert = column.key[3] or (None, None)
    named = dict(zip(("dataset", "env", "unit"), column.key, strict=False))
    return {**named, "reference_random": random, "reference_expert": expert}


def _record(cell: Cell, column: Column) -> dict[str, Any]:
    first, finals = cell.runs[0], [run.final for run in cell.finished]
    low, high = stats.t_interval(finals) if cell.n >= stats.FEWEST_FOR_T else stats.NO_INTERVAL
    return {
        "algorithm": first.algorithm,
        "config": first.config,
        **_place(column),
        "profile": first.profile,
        "steps": first.steps,
        "mean": cell.mean,
        "ci95_low": low,
        "ci95_high": high,
        "lowest": min(finals, default=math.nan),
        "highest": max(finals, default=math.nan),
        "sd": stats.sd(finals),
        "iqm": float(stats.iqm(finals)) if finals else math.nan,
        "last10_mean": stats.mean([run.last10 for run in cell.finished]),
        "best_mean": stats.mean([run.best for run in cell.finished]),
        "n": cell.n,
        "seeds": len(cell.runs),
        "unfinished": cell.missing(),
        "rank": cell.rank,
        "ranked": cell.ranked,
        "bold": cell.bold,
        "note": QUICK if first.profile == "quick" else "",
    }


# -- terminal ------------------------------------------------------------------------------------


def plain(summary: Summary) -> str:
    """A block per dataset, narrow enough for any terminal, the best first."""
    blocks = []
    for column in summary.columns:
        cells = sorted(  # ranks count within a profile
            summary.column_cells(column),
            key=lambda rc: (rc[0].key[1], rc[1].rank is None, rc[1].rank or 0),
        )
        lines = [
            (row.label, view(cell, column), spell_steps(cell.runs[0].steps)) for row, cell in cells
        ]
        lines.append(("dataset", View(number(column.reference, column.decimals), ""), ""))
        wide = max(len(label) for label, _, _ in lines)
        value = max(len(v.value) for _, v, _ in lines)
        text = [f"{column.title} ({UNITS[column.unit]})"]
        for label, v, steps in lines:
            mark = "*" if v.bold else " "
            detail = ", ".join(part for part in (v.detail, steps) if part)
            text.append(f"  {label:<{wide}}  {v.value:<{value}} {mark} {detail}".rstrip())
        blocks.append("\n".join(text))
    notes = [f"note: {note}" for note in summary.notes]
    bold = any(cell.bold for cell in summary.cells.values())
    star = (
        ["* the best: its difference to every other is supported at 5 % (Welch, Holm)"]
        if bold
        else []
    )
    head = "Final evaluation over finished seeds: mean ± 95 % interval, for two [lowest, highest]"
    return printable("\n\n".join([head, *blocks, "\n".join([*star, *notes])])).rstrip() + "\n"


def printable(text: str) -> str:
    """Without the control characters by which a name could drive a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
