"""Colours and line styles of the figures, safe for the colour-blind.

A recipe of this project has the same colour in every figure of every report. Line styles tell
variants of one algorithm apart (and algorithms, once the colours are used up).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from bench.report.aggregate import RowKey, Summary

# Wong's palette (Nature Methods 8, 441) without black and yellow.
COLOURS = {
    "td3_bc": "#0072b2",
    "iql": "#d55e00",
    "cql": "#009e73",
    "dt": "#cc79a7",
    "sac": "#56b4e9",
    "bc": "#e69f00",
    None: "#7f7f7f",  # nobody's own
}
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))

Style = tuple[str, Any]  # colour, line style


def row_styles(summary: Summary) -> dict[RowKey, Style]:
    """A colour per algorithm and a line style per variant of it, the same in every figure."""
    algorithms = list(dict.fromkeys(row.key[0] for row in summary.rows))
    others = _others(algorithms)
    styles = {}
    for algorithm in algorithms:
        colour, first = (COLOURS[algorithm], 0) if algorithm in COLOURS else next(others)
        own = [row.key for row in summary.rows if row.key[0] == algorithm]
        for variant, key in enumerate(own):
            styles[key] = (colour, DASHES[(first + variant) % len(DASHES)])
    return styles


def colours(algorithms: list[str]) -> dict[str, str]:
    """One per algorithm, as in the other figures; the last ones repeat where there are many."""
    others = _others(algorithms)
    return {a: COLOURS[a] if a in COLOURS else next(others)[0] for a in algorithms}


def _others(algorithms: list[str]) -> Iterator[tuple[str, int]]:
    """Colour and first line style of algorithms without a colour of their own: the free colours
    first, then all of them again in other line styles."""
    yield COLOURS[None], 0
    yield from ((colour, 0) for name, colour in COLOURS.items() if name and name not in algorithms)
    yield from ((colour, again) for again in count(1) for colour in COLOURS.values())
