"""Policies chosen without an environment: how estimates of their value agree with their scores."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bench.report.tables import escape_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST = 3  # policies for a rank correlation


@dataclass(frozen=True)
class Estimate:
    """A policy's estimated discounted return, and its score (mean of its recorded evaluation)."""

    dataset: str
    algorithm: str
    label: str
    seed: int
    which: str  # "last" or "best" checkpoint
    step: int
    estimate: float
    score: float
    unit: str

    @property
    def name(self) -> str:
        return f"{self.label}, seed {self.seed}, {self.which} ({self.step})"


@dataclass(frozen=True)
class Selection:
    """What choosing by estimate is worth on a dataset.

    ``regret`` is regret@1 (Fu et al. 2021, arXiv:2103.16596): the best policy's score less that of
    the policy with the largest estimate. ``chance`` is what a policy drawn at random loses on the
    mean.
    """

    dataset: str
    unit: str
    policies: int
    spearman: float
    regret: float
    chance: float
    chosen: Estimate
    best: Estimate


@dataclass(frozen=True)
class Offline:
    """What was estimated, and a line for everything that could not be."""

    estimates: tuple[Estimate, ...]
    left_out: tuple[str, ...]

    def by_dataset(self) -> dict[str, list[Estimate]]:
        found: dict[str, list[Estimate]] = {}
        for one in self.estimates:
            found.setdefault(one.dataset, []).append(one)
        return found


def selections(offline: Offline) -> list[Selection]:
    """One per dataset with at least two policies. An estimate that is not finite ranks last."""
    return [_selection(own) for own in offline.by_dataset().values() if len(own) > 1]


def _selection(own: Sequence[Estimate]) -> Selection:
    guesses = np.array([e.estimate if math.isfinite(e.estimate) else -math.inf for e in own])
    scores = np.array([e.score for e in own])
    chosen, best = own[int(guesses.argmax())], own[int(scores.argmax())]
    return Selection(
        own[0].dataset,
        own[0].unit,
        len(own),
        spearman(guesses, scores) if len(own) >= FEWEST else math.nan,
        best.score - chosen.score,
        float(best.score - scores.mean()),
        chosen,
        best,
    )


def spearman(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Spearman's rank correlation; ties share their mean rank. nan where one is constant."""
    ranks = [pd.Series(np.asarray(x, dtype=float)).rank().to_numpy() for x in (a, b)]
    if any(np.ptp(r) == 0 for r in ranks):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


# ---------------------------------------------------------------------------------- texts


def frame(offline: Offline) -> pd.DataFrame:
    """A row per policy."""
    columns = list(Estimate.__dataclass_fields__)
    return pd.DataFrame([vars(e) for e in offline.estimates], columns=columns)


_TITLE = "Policies chosen by fitted Q evaluation"
_HEAD = ("dataset", "policies", "Spearman", "regret@1", "at random", "chosen", "the best")
_MEANING = (
    "Regret@1: the best policy's score less that of the policy with the largest estimate; at "
    "random: the mean regret of a policy drawn by lot."
)


def _rows(offline: Offline) -> Iterator[tuple[str, ...]]:
    for s in selections(offline):
        rank = f"{s.spearman:.2f}" if math.isfinite(s.spearman) else "–"
        numbers = (f"{s.policies}", rank, f"{s.regret:.1f}", f"{s.chance:.1f}")
        ends = (f"{e.name}: {e.score:.1f}" for e in (s.chosen, s.best))
        yield (s.dataset, *numbers, *ends)


def plain(offline: Offline) -> str:
    """For a terminal."""
    rows = [_HEAD, *_rows(offline)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_TITLE]
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        lines.append(line.rstrip())
    return "\n".join([*lines, _MEANING, *offline.left_out]) + "\n"


def markdown(offline: Offline) -> str:
    lines = [f"## {_TITLE}", "", f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|"]
    lines += [f"| {' | '.join(map(escape_markdown, row))} |" for row in _rows(offline)]
    notes = [f"- {escape_markdown(line)}" for line in offline.left_out]
    return "\n".join([*lines, "", _MEANING, "", *notes]) + "\n"


def page_section(offline: Offline) -> str:
    """A sortable table for the report."""
    heads = "".join(
        f'<th scope="col"{"" if name in _HEAD[1:5] else " class=word"}>'
        f'<button type="button">{html.escape(name)}</button></th>'
        for name in _HEAD
    )
    body = "".join(
        f'<tr data-find="{html.escape(row[0].lower())}">'
        + "".join(f"<td>{html.escape(text)}</td>" for text in row)
        + "</tr>"
        for row in _rows(offline)
    )
    notes = "".join(f"<li>{html.escape(line)}</li>" for line in offline.left_out)
    return (
        f'<h2>{_TITLE}</h2>\n<div class="scroll"><table><caption>{_MEANING}</caption><thead><tr>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table></div>"
        + (f'\n<ul class="notes">{notes}</ul>' if notes else "")
    )


def draw_estimates(own: Sequence[Estimate]) -> Figure:
    """Scores over estimates of one dataset's policies, a colour per algorithm."""
    from bench.report.plots import AXIS, finish, new_figure
    from bench.report.styles import colours

    figure, axes = new_figure()
    labels = {e.algorithm: e.label for e in own}
    for algorithm, colour in colours(list(labels)).items():
        mine = [e for e in own if e.algorithm == algorithm and math.isfinite(e.estimate)]
        x, y = [e.estimate for e in mine], [e.score for e in mine]
        axes.scatter(x, y, s=16, color=colour, label=labels[algorithm], linewidths=0)
    axes.set_xlabel("estimated discounted return")
    axes.set_ylabel(AXIS[own[0].unit])
    found = _selection(own)
    note = f"{found.policies} policies, Spearman {found.spearman:.2f}, regret@1 {found.regret:.1f}"
    finish(figure, axes, own[0].dataset, [note], height=2.4)
    return figure
