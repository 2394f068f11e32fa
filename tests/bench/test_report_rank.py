"""Who is ranked among whom, and what a bold number claims."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.report.aggregate import Cell, Summary, summarise
from bench.report.collect import collect
from bench.report.tables import view
from tests.bench.report_runs import make_run


def summary(out: Path) -> Summary:
    return summarise(collect(out))


def finals(out: Path, **algos: tuple[float, ...]) -> dict[str, Cell]:
    for algo, values in algos.items():
        for seed, value in enumerate(values):
            make_run(out, algo, seed=seed, finals=value)
    table = summary(out)
    return {row.key[0]: table.cells[row.key, table.columns[0].key] for row in table.rows}


def test_bold_needs_a_difference_that_welch_s_test_supports(tmp_path):
    # sd 2 and n 3 on both sides: df 4, so 2.77645 * 2 * sqrt(2 / 3) = 4.534 apart, 5 %
    cells = finals(tmp_path / "out", td3_bc=(48.0, 50.0, 52.0), iql=(43.5, 45.5, 47.5))
    assert not cells["td3_bc"].bold
    cells = finals(tmp_path / "in", td3_bc=(48.0, 50.0, 52.0), iql=(43.4, 45.4, 47.4))
    assert cells["td3_bc"].bold and not cells["iql"].bold
    # the runner-up's spread counts: the best's own interval leaves out its mean by far
    cells = finals(tmp_path / "wide", td3_bc=(49.0, 50.0, 51.0), iql=(10.0, 30.0, 50.0))
    assert not cells["td3_bc"].bold


@pytest.mark.parametrize(
    "algos",
    [{"iql": (90.0,), "bc": (1.0, 1.1)}, {"iql": (90.0, 90.1), "bc": (1.0,)}, {"iql": (90, 90)}],
)
def test_one_seed_or_one_algorithm_is_never_bold(tmp_path, algos):
    assert not any(cell.bold for cell in finals(tmp_path, **algos).values())


def test_ranks_share_ties(tmp_path):
    cells = finals(tmp_path, td3_bc=(40.0,), iql=(40.0,), cql=(30.0,), bc=(50.0,))
    ranks = {algo: cell.rank for algo, cell in cells.items()}
    assert ranks == {"bc": 1, "td3_bc": 2, "iql": 2, "cql": 4}


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ({"state": "diverged"}, "2/3 seeds: 1 diverged, survivors only: no rank"),
        ({"state": "failed"}, "2/3 seeds: 1 failed, survivors only: no rank"),
        ({"finals": None}, "2/3 seeds: 1 without a score, survivors only: no rank"),
    ],
)
def test_survivors_are_neither_ranked_nor_bold_and_the_others_say_so(tmp_path, lost, words):
    make_run(tmp_path, "dt", seed=2, **lost)
    cells = finals(tmp_path, dt=(99.0, 99.1), bc=(10.0, 10.1), iql=(50.0, 50.1))
    assert [cells[a].rank for a in ("iql", "bc", "dt")] == [1, 2, None]
    column = summary(tmp_path).columns[0]
    assert view(cells["dt"], column).detail == words
    assert view(cells["iql"], column).detail == "n=2, rank 1 of 2, 1 without a rank"
    assert not any(cell.bold for cell in cells.values())  # 99 may be the better one
    assert any("1 of 3 cells have no rank" in note for note in summary(tmp_path).notes)


def test_the_best_may_be_bold_above_survivors_and_when_all_seeds_are_lost(tmp_path):
    make_run(tmp_path, "dt", seed=2, state="diverged")
    make_run(tmp_path, "cql", state="diverged")
    cells = finals(tmp_path, dt=(1.0, 1.1), bc=(10.0, 10.1), iql=(50.0, 50.1))
    assert cells["iql"].bold
    column = summary(tmp_path).columns[0]
    assert view(cells["iql"], column).detail == "n=2, rank 1 of 2, 2 without a rank"
    assert view(cells["cql"], column).detail == "0/1 seeds: 1 diverged, no rank"


def test_seeds_that_still_run_or_were_stopped_leave_the_rank(tmp_path):
    make_run(tmp_path, "iql", seed=1, state="running")
    make_run(tmp_path, "iql", seed=2, state="killed")
    cells = finals(tmp_path, iql=(50.0,), bc=(10.0, 10.1))
    assert (cells["iql"].rank, cells["iql"].unranked) == (1, 0)


def test_ranks_and_bold_count_within_a_profile_and_over_steps(tmp_path):
    for algo, profile, final, steps in [
        *(("td3_bc", "paper", 50, 1_000_000), ("dt", "paper", 40, 100_000)),
        *(("iql", "quick", 90, 10_000), ("bc", "quick", 80, 20_000)),
    ]:
        for seed in (0, 1):
            make_run(tmp_path, algo, seed=seed, finals=final + seed / 10, profile=profile,
                     steps=steps)  # fmt: skip
    table = summary(tmp_path)
    found = {row.key[0]: (cell.rank, cell.ranked, cell.bold)
             for row, cell in table.column_cells(table.columns[0])}  # fmt: skip
    assert found == {"td3_bc": (1, 2, True), "dt": (2, 2, False),
                     "iql": (1, 2, True), "bc": (2, 2, False)}  # fmt: skip
    labels = [row.label for row in table.rows if row.key[0] == "dt"]
    assert labels == ["DT (paper profile, 100k steps)"]
