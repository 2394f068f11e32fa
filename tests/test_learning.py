"""The tool that judges whether recipes learn (tests/learning), on runs with known scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.recipes import recipe_names
from bench.report.collect import Run
from tests.learning import floors as levels
from tests.learning import run as tool
from tests.learning.cells import INDEPENDENT, SEEDS, Cell, Found, cells

REFERENCE = {"lite/cartpole/replay-v0": (20.0, 500.0), "lite/twostep/random-v0": (0.0, 8.0)}


def seed(cell: Cell, number: int, score: float, state: str = "done", path: Path = Path()) -> Run:
    steps, curve = np.array([1, 2]), np.array([0.0, score])
    reference = REFERENCE.get(cell.dataset, (-1200.0, 0.0))
    return Run(
        path, cell.algorithm, cell.algorithm, "0", cell.dataset, None, number, 2, "quick",
        "normalized", state, None, steps, curve, 10.0, references=(reference,),
    )  # fmt: skip


def table(**scores: float) -> dict[str, Found]:
    """Every cell with the score given for it, 50 where there is none."""
    named = {cell.name: cell for cell in cells()}
    keys = {INDEPENDENT: "alone"}
    return {
        name: Found(cell, [seed(cell, i, scores.get(keys.get(name, name), 50.0)) for i in range(3)])
        for name, cell in named.items()
    }


def verdict(key: str, found: dict[str, Found]) -> tuple[str, bool] | None:
    (floor,) = [f for f in levels.floors() if f.key == key]
    return floor.verdict(found)


def test_every_recipe_has_a_row() -> None:
    assert {cell.algorithm for cell in cells()} == set(recipe_names())


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("iql-above-bc", {"iql": 50.1, "bc": 50.0}, {"iql": 50.0, "bc": 50.0}),
        ("dqn-cartpole", {"dqn": 79.2}, {"dqn": 79.1}),  # 20 + 480 x 0.792 = 400.2
        ("qmix-game", {"qmix": 100.0}, {"qmix": 99.0}),
        ("independent-game", {"alone": 87.5}, {"alone": 88.0}),
    ],
)
def test_floors_of_scores(key: str, good: dict, bad: dict) -> None:
    assert verdict(key, table(**good))[1] and not verdict(key, table(**bad))[1]


def test_a_seed_that_is_missing_leaves_it_open_and_one_that_diverged_misses_it() -> None:
    found = table(iql=90.0)
    cell = found["iql"].cell
    found["iql"] = Found(cell, found["iql"].runs[: SEEDS - 1])
    assert verdict("iql-above-bc", found) is None
    found["iql"] = Found(cell, [*found["iql"].runs, seed(cell, 2, 90.0, "diverged")])
    assert verdict("iql-above-bc", found) == ("seeds diverged: iql", False)


def test_a_sequence_model_must_return_more_when_more_is_asked_for(tmp_path: Path) -> None:
    rows = ["step,name,value", "1,eval/return_at_3600,9", "2,eval/return_at_3600,100",
            "2,eval/return_at_1800,99", "2,loss,0.5"]  # fmt: skip
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    found = table()
    cell = found["dt"].cell
    found["dt"] = Found(cell, [seed(cell, i, 1.0, path=tmp_path) for i in range(3)])
    assert verdict("dt-target", found) == ("100 of 3600, 99 of 1800", True)
    (tmp_path / "metrics.csv").write_text("\n".join(rows).replace("1800,99", "1800,101"))
    assert not verdict("dt-target", found)[1]


def test_the_world_model_is_judged_by_rank_and_by_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform actions return about -1213 with a spread of about 300 per episode."""
    ranks = iter([0.9, 0.5, 0.1, 0.9, 0.5, 0.0])
    monkeypatch.setattr(levels, "measure", lambda *args: type("C", (), {"spearman": next(ranks)}))
    assert verdict("dreamer-model", table())[1] and not verdict("dreamer-model", table())[1]
    assert verdict("dreamer-policy", table(dreamer=80.0))[1]
    assert not verdict("dreamer-policy", table(dreamer=60.0))[1]


def test_a_floor_missed_needs_a_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    floor = next(f for f in levels.floors() if f.key == "iql-above-bc")
    judged = [(floor, ("1 against 2", False))]
    assert "no diagnosis yet" in tool.judged(judged)
    monkeypatch.setattr(tool, "diagnoses", lambda: {"iql-above-bc": "Its value network is narrow."})
    assert "Its value network is narrow." in tool.judged(judged)


def test_the_page_shows_seeds_that_diverged_and_what_is_missing() -> None:
    found = table(bc=12.0)
    cell = found["td3"].cell
    found["td3"] = Found(cell, [seed(cell, 0, 1.0), seed(cell, 1, 2.0, "diverged")])
    found["sac"] = Found(found["sac"].cell)
    lines = tool.scores(found).splitlines()
    assert any(
        line.startswith("| TD3 |") and "1.0, diverged | 10.0 | 12.0" in line for line in lines
    )
    assert any(line.startswith("| SAC |") and "not trained yet" in line for line in lines)
