"""Colours and line styles of the figures: which algorithm gets which."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from bench.recipes import recipe_names
from bench.report import styles
from bench.report.aggregate import summarise
from bench.report.collect import collect
from tests.bench.report_runs import make_run

ALGOS = ("td3_bc", "iql", "cql", "bc", "dt")


def test_an_algorithm_has_one_colour_everywhere_and_variants_differ_in_style(
    tmp_path: Path,
) -> None:
    for algorithm, dataset in itertools.product(ALGOS, "ab"):
        make_run(tmp_path, algorithm, dataset)
    make_run(tmp_path, "iql", "b", steps=500)
    found_styles = styles.row_styles(summarise(collect(tmp_path)))
    by_algorithm: dict[str, list[Any]] = {}
    for key, style in found_styles.items():
        by_algorithm.setdefault(key[0], []).append(style)
    assert all(len({colour for colour, _ in found}) == 1 for found in by_algorithm.values())
    assert len({found[0][0] for found in by_algorithm.values()}) == 5
    assert len({str(dashes) for _, dashes in by_algorithm["iql"]}) == 2


def test_a_recipe_has_its_colour_whoever_else_is_there(tmp_path: Path) -> None:
    """Catches: colours dealt by place in the list, which change from one report to the next."""

    def colours(*algorithms: str) -> dict[str, str]:
        out = tmp_path / "-".join(algorithms)
        for algorithm in algorithms:
            make_run(out, algorithm)
        found = styles.row_styles(summarise(collect(out)))
        return {key[0]: colour for key, (colour, _) in found.items()}

    own = [name for name in styles.COLOURS if name]
    assert set(own) <= set(recipe_names())
    together = colours(*own, "aaa", "aab")
    assert len(set(together.values())) == len(own) + 1  # no colour is left for aab
    for name in own:
        assert colours(name)[name] == together[name]
    assert colours("aaa", "aab", "bc")["bc"] == together["bc"]
    assert len(set(colours("aaa", "aab", "bc").values())) == 3


def test_more_algorithms_than_colours_still_differ(tmp_path: Path) -> None:
    for place in range(16):
        make_run(tmp_path, f"algo{place:02d}")
    found = styles.row_styles(summarise(collect(tmp_path)))
    assert len(set(map(str, found.values()))) == 16
