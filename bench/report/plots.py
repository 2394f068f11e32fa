"""Figures: per dataset one of learning curves and one of final scores with every seed as a dot.

Sized for one column of a paper (3.4 in wide), so that what is legible here is legible there.
Colours and line styles are dealt in ``styles.py``.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.report import stats
from bench.report.aggregate import Cell, Column, Row, RowKey, Summary
from bench.report.collect import Run
from bench.report.notes import QUICK
from bench.report.offline import Offline, draw_estimates
from bench.report.overall import Group
from bench.report.styles import Style, row_styles
from bench.store import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#24292f"  # text and axes; the HTML report swaps it for the page's own colour
WIDTH = 3.4
AXIS = {
    "normalized": "normalized score",
    "return": "return per episode",
}


@dataclass(frozen=True)
class Plot:
    """One written figure; ``svg`` is its text, for inlining, ``find`` what a filter looks at."""

    find: str
    stem: str
    png: bytes
    svg: str
    alt: str


def write_plots(
    summary: Summary,
    folder: Path,
    groups: Iterable[Group] = (),
    offline: Offline | None = None,
) -> list[Plot]:
    """Write every figure as .png (300 dpi) and .svg into ``folder``, in place of older ones: those
    of ``groups`` first, then those of each dataset, then those of ``offline``.

    Another process may do the same at the same time: a figure that both have is never missing.
    """
    from bench.report.overall_plots import draw_groups

    styles = row_styles(summary)
    names = stems(summary)
    drawn = []
    with house_style():
        for stem, alt, over in draw_groups(list(groups), styles):
            drawn.append(Plot("over datasets", stem, *_rendered(over), alt))
        for column in summary.columns:
            for kind, what, draw in KINDS:
                figure = draw(summary, column, styles)
                if figure is not None:
                    stem, alt = f"{names[column.key]}-{kind}", f"{what} on {column.title}"
                    drawn.append(Plot(column.title, stem, *_rendered(figure), alt))
        for dataset, own in (offline.by_dataset() if offline else {}).items():
            if len(own) > 1:
                stem, alt = (
                    f"{_stem(dataset)}-fqe",
                    f"Estimates and scores of policies on {dataset}",
                )
                drawn.append(Plot(dataset, stem, *_rendered(draw_estimates(own)), alt))
    for plot in drawn:
        atomic_write(folder / f"{plot.stem}.png", plot.png)
        atomic_write(folder / f"{plot.stem}.svg", plot.svg)
    _remove_others(folder, {plot.stem for plot in drawn})
    return drawn


def _remove_others(folder: Path, stems: set[str]) -> None:
    for path in [*folder.glob("*.png"), *folder.glob("*.svg")]:
        if path.stem not in stems:
            path.unlink(missing_ok=True)


def stems(summary: Summary) -> dict[object, str]:
    """A file name for each column; names that would collide get a few digits of their hash."""
    plain = {c.key: _stem(c.title) for c in summary.columns}
    taken = [name.casefold() for name in plain.values()]
    return {
        key: name
        if name and taken.count(name.casefold()) == 1
        else f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:6]}"
        for key, name in plain.items()
    }


def _stem(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", name).strip("._")


# -- figures -------------------------------------------------------------------------------------


def draw_curves(summary: Summary, column: Column, styles: dict[RowKey, Style]) -> Figure | None:
    """Mean over seeds against training steps, with the band of the seeds."""
    cells = [(row, cell) for row, cell in summary.column_cells(column) if _shown(cell)]
    if not cells:
        return None
    figure, axes = new_figure()
    extremes: list[float] = []
    for (row, cell), label in zip(cells, _labels(cells), strict=True):
        extremes += _draw_curve(axes, cell, styles[row.key], label)
    _reference_line(axes.axhline, column)
    axes.set_ylim(*_limits(axes.get_ylim(), extremes, column))
    cut = [_mark_cut_band(axes, cell, styles[row.key][0]) for row, cell in cells]
    axes.set_xlabel("training steps")
    axes.set_ylabel(AXIS[column.unit])
    axes.xaxis.set_major_formatter(_steps_formatter())
    axes.margins(x=0.01)
    notes = _footnote([cell for _, cell in cells], column, cut=any(cut))
    finish(figure, axes, column.title, notes, height=1.75)
    return figure


def _draw_curve(axes: Axes, cell: Cell, style: Style, label: str) -> list[float]:
    """Draw one row; the lowest and highest value that the y axis must show."""
    steps, values = common_curve(_shown(cell))
    colour, dashes = style
    middle = values.mean(axis=0)
    marker = "o" if len(steps) == 1 else None
    axes.plot(steps, middle, color=colour, linestyle=dashes, linewidth=1.3, label=label,
              marker=marker, markersize=3, zorder=3)  # fmt: skip
    if len(values) > 1:
        low, high = stats.band(values)
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
    return [float(values.min()), float(values.max())]


def _mark_cut_band(axes: Axes, cell: Cell, colour: str) -> bool:
    """An arrowhead where the band leaves the axes, at the widest point of each such stretch;
    whether there is one."""
    steps, values = common_curve(_shown(cell))
    bottom, top = axes.get_ylim()
    low, high = stats.band(values)
    any_cut = False
    for beyond, edge, marker in ((high - top, top, "up"), (bottom - low, bottom, "down")):
        for stretch in _stretches(beyond > 0):
            at = steps[stretch][np.argmax(beyond[stretch])]
            _arrowhead(axes, at, edge, marker, colour)
            any_cut = True
    return any_cut


def _stretches(mask: np.ndarray) -> list[slice]:
    """The runs of True in [k] booleans."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _arrowhead(axes: Axes, x: float, y: float, direction: str, colour: str) -> None:
    """A triangle with its tip at (x, y)."""
    marker = {"left": 4, "right": 5, "up": 6, "down": 7}[direction]  # matplotlib's carets
    axes.plot([x], [y], marker=marker, markersize=4.5, color=colour, markeredgewidth=0,
              linestyle="none", clip_on=False, zorder=5, gid=f"cut-{direction}")  # fmt: skip


def common_curve(runs: list[Run]) -> tuple[np.ndarray, np.ndarray]:
    """(steps [k], values [n, k]) at the evaluations that all ``runs`` have and that are finite."""
    steps = runs[0].curve_steps
    for run in runs[1:]:
        steps = np.intersect1d(steps, run.curve_steps)
    values = np.stack([run.curve[np.isin(run.curve_steps, steps)] for run in runs])
    keep = np.isfinite(values).all(axis=0)
    return steps[keep], values[:, keep]


def _shown(cell: Cell) -> list[Run]:
    """The finished seeds; where there are none, those that have evaluations at least."""
    runs = cell.finished or [run for run in cell.runs if np.isfinite(run.curve).any()]
    return runs if runs and common_curve(runs)[0].size else runs[:1]


def draw_scores(summary: Summary, column: Column, styles: dict[RowKey, Style]) -> Figure | None:
    """A bar per row: the mean of the last evaluation, its interval, and each seed as a dot."""
    cells = [(row, cell) for row, cell in summary.column_cells(column) if cell.n]
    if not cells:
        return None
    figure, axes = new_figure()
    shown, wide = [0.0], [0.0]
    for place, (row, cell) in enumerate(cells):
        wide += _draw_bar(axes, place, cell, styles[row.key][0])
        shown += [run.final for run in cell.finished]
    labels = [wrapped(label, 24) for label in _labels(cells)]
    axes.set_yticks(range(len(cells)), labels)
    pitch = max(0.22, 0.06 + 0.11 * max(label.count("\n") + 1 for label in labels))
    axes.set_ylim(len(cells) - 0.45, -0.55)  # the first row on top
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    _reference_line(axes.axvline, column)
    axes.set_xlim(*_limits((min(wide), max(wide)), shown, column))
    cut = [_mark_cut_bar(axes, place, cell) for place, (_, cell) in enumerate(cells)]
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(AXIS[column.unit])
    notes = _footnote([cell for _, cell in cells], column, cut=any(cut))
    finish(figure, axes, column.title, notes, height=0.55 + pitch * len(cells))
    return figure


def _draw_bar(axes: Axes, place: int, cell: Cell, colour: str) -> list[float]:
    """Draw one row; the ends of its interval."""
    finals = np.array([run.final for run in cell.finished])
    axes.barh(place, cell.mean, height=0.62, color=colour, alpha=0.35, linewidth=0, zorder=2)
    ends = [*cell.interval]
    axes.plot(ends, [place, place], color=INK, linewidth=0.9, zorder=3)
    spread = np.linspace(-0.16, 0.16, len(finals)) if len(finals) > 1 else np.zeros(1)
    axes.scatter(finals, place + spread, s=9, color=colour, edgecolor="white", linewidth=0.4,
                 zorder=4)  # fmt: skip
    return ends


def _mark_cut_bar(axes: Axes, place: int, cell: Cell) -> bool:
    """An arrowhead at each end of the interval that lies beyond the axes; whether there is one."""
    left, right = axes.get_xlim()
    low, high = cell.interval
    if low < left:
        _arrowhead(axes, left, place, "left", INK)
    if high > right:
        _arrowhead(axes, right, place, "right", INK)
    return low < left or high > right


KINDS = (
    ("curves", "Learning curves", draw_curves),
    ("scores", "Final scores with every seed", draw_scores),
)

# -- their parts ---------------------------------------------------------------------------------


@contextmanager
def house_style() -> Iterator[None]:
    import matplotlib as mpl
    import seaborn as sns

    own: dict[str, Any] = {
        "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure everywhere
        "font.size": 7.5,
        "axes.labelsize": 7.5,
        "axes.titlesize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "axes.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#8c959f",
        "grid.alpha": 0.25,
        "grid.linewidth": 0.5,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "svg.hashsalt": "bench",  # the same runs give the same file
        "svg.fonttype": "path",
        **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
    }
    style: Any = {**sns.axes_style("ticks"), **own}
    with mpl.rc_context(style):
        yield


def new_figure() -> tuple[Figure, Axes]:
    """A figure without pyplot: no global state, no display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, WIDTH))
    return figure, figure.add_subplot()


def shown_text(name: str) -> str:
    """A name that matplotlib shows as it is: '$' would start a formula."""
    return " ".join(name.split()).replace("$", r"\$")


def wrapped(name: str, width: int) -> str:
    return "\n".join(shown_text(line) for line in textwrap.wrap(name, width))


def _labels(cells: list[tuple[Row, Cell]]) -> list[str]:
    """The rows' names, as short as this figure allows; seeds where some are missing."""
    rows = [row for row, _ in cells]
    return [
        row.label_among(rows) + (f" [{c.n}/{len(c.runs)}\u00a0seeds]" if c.n < len(c.runs) else "")
        for row, c in cells
    ]


def _reference_line(draw: Any, column: Column) -> None:
    if column.reference is not None:
        draw(column.reference, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1.5,
             label="dataset mean")  # fmt: skip


def _limits(wanted: tuple[float, float], shown: list[float], column: Column) -> tuple[float, float]:
    """Room for all of ``shown``; an interval of few seeds may be far wider than they are and must
    not flatten the rest: it gets a third of their range at each end."""
    shown = shown if column.reference is None else [*shown, column.reference]
    low, high = min(shown), max(shown)
    room = (high - low) or abs(high) or 1.0
    bottom, top = max(wanted[0], low - 0.33 * room), min(wanted[1], high + 0.33 * room)
    bottom, top = min(bottom, low), max(top, high)
    return bottom - (0.03 * room if bottom else 0.0), top + (0.03 * room if top else 0.0)


def _steps_formatter() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def finish(figure: Figure, axes: Axes, title: str, notes: list[str], *, height: float) -> None:
    """Title, legend and footnote, each in a strip of its own below axes of ``height`` inches."""
    import seaborn as sns

    sns.despine(ax=axes)
    size = 8 * min(1.0, 47 / len(title))
    figure.suptitle(shown_text(title), x=0.03, ha="left", fontsize=size)
    handles, labels = axes.get_legend_handles_labels()
    columns = _legend_columns(labels)
    labels = [wrapped(label, 50) for label in labels]
    lines = sum(label.count("\n") + 1 for label in labels)  # more than one only in one column
    foot = 0.03 + 0.105 * len(notes)
    strip = foot - 0.02 + 0.15 * math.ceil(lines / columns)
    figure.set_size_inches(WIDTH, height + strip)
    figure.text(0.5, 0.03 / (height + strip), "\n".join(notes), fontsize=6, ha="center",
                va="bottom", linespacing=1.15)  # fmt: skip
    figure.legend(handles, labels, loc="lower center", ncols=columns,
                  bbox_to_anchor=(0.5, foot / (height + strip)), frameon=False, handlelength=1.8,
                  columnspacing=1.2, borderpad=0, borderaxespad=0, labelspacing=0.35)  # fmt: skip
    low = strip / (height + strip)
    figure.set_layout_engine("constrained", rect=(0, low, 1, 1 - low), w_pad=0.03, h_pad=0.03)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it stays as laid out: one layout for both formats


def _legend_columns(labels: list[str]) -> int:
    """As many as fit: a column is as wide as its longest label, at 7 pt about 0.055 in a letter."""
    for columns in (4, 3, 2):
        longest = max(map(len, labels), default=0)
        if columns <= len(labels) and columns * (0.055 * longest + 0.36) < WIDTH:
            return columns
    return 1


def _footnote(cells: list[Cell], column: Column, *, cut: bool) -> list[str]:
    counts = sorted({len(_shown(cell)) for cell in cells})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    if counts[-1] == 1:
        spread = "no interval for one seed"
    elif counts[-1] == 2:
        spread = "interval: lowest to highest seed"
    else:
        few = counts[0] < stats.FEWEST_FOR_T
        spread = "95 % interval" + (" (2 seeds: lowest to highest)" if few else "")
    lines = [f"mean of {seeds} seed{'s' if counts[-1] != 1 else ''}; {spread}"]
    if cut:
        lines.append("arrowheads: there the interval goes on beyond the axis")
    if column.unit == "normalized":
        lines.append("score 0: random policy, 100: expert")
    if not all(cell.n for cell in cells):
        lines.append("[0/n seeds]: no seed is finished; what there is of them is shown")
    if any(run.profile == "quick" for cell in cells for run in cell.runs):
        lines.append(QUICK)
    return lines


def _rendered(figure: Figure) -> tuple[bytes, str]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=300, metadata={"Software": None})
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue().decode()
