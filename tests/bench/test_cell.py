"""Every recipe through a whole cell: train, evaluate, checkpoint, and what goes wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.data import load
from bench.engine.cell import Cell, Task
from bench.errors import RunError
from bench.plan import Request, make_plan
from bench.recipes import recipe_names
from bench.store import GroupLock
from tests.bench.runs import pendulum_file

SMALL = {
    "dt": {"width": "8", "layers": "1", "batch_size": "4", "context": "3"},
    "iql": {"hidden": "8,8", "batch_size": "8", "dropout": "0.1"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pendulum_file(tmp_path_factory.mktemp("data") / "pendulum.hdf5")


def task_of(data: Path, out: Path, algo: str, **changes: Any) -> Task:
    settings = SMALL.get(algo, {"hidden": "8,8", "batch_size": "8"})
    request = Request(
        (algo,),
        (str(data),),
        steps=10,
        out=out,
        settings=settings,
        eval_interval=5,
        eval_episodes=2,
    )
    (task,) = make_plan(replace(request, **changes), workers=1).tasks
    return task


def cell_of(data: Path, task: Task) -> Cell:
    return Cell(task, load(str(data)), lambda event: None)


def statuses(cell: Cell) -> list[dict]:
    return [json.loads((f.path / "status.json").read_text()) for f in cell.folders]


@pytest.mark.parametrize("algo", recipe_names())
def test_every_recipe_trains_and_is_evaluated(algo: str, data: Path, tmp_path: Path) -> None:
    """Catches: a recipe that lacks a setting the cell reads, a policy that draws noise."""
    cell = cell_of(data, task_of(data, tmp_path, algo))
    cell.run()
    for folder in cell.folders:
        rows = [line.split(",") for line in (folder.path / "scores.csv").read_text().splitlines()]
        assert [r[0] for r in rows[1:]] == ["5", "5", "10", "10"]
        assert all(-2000 < float(r[2]) < 0 and r[3] == "200" for r in rows[1:])
    assert [s["state"] for s in statuses(cell)] == ["done", "done"]
    config = json.loads((cell.folders[0].path / "config.json").read_text())
    assert config["group"] == [0, 1] and not config["paper_protocol"]


def test_a_seed_that_diverges_stops_alone(data: Path, tmp_path: Path) -> None:
    cell = cell_of(data, task_of(data, tmp_path, "td3_bc"))
    name = "qvalue_network_params.module.0.weight"
    assert name in cell.trainer.tensors
    cell.trainer.tensors[name][1] = float("nan")
    cell.run()
    first, second = statuses(cell)
    assert first["state"] == "done"
    assert second["state"] == "diverged" and "critic/" in second["reason"]
    assert "at step 5" in second["reason"]
    assert len((cell.folders[0].path / "scores.csv").read_text().splitlines()) == 5
    assert not (cell.folders[1].path / "scores.csv").exists()


def test_a_failure_is_written_down_and_the_run_can_go_on(data: Path, tmp_path: Path) -> None:
    task = task_of(data, tmp_path, "bc")
    cell = cell_of(data, task)

    def explode(step: int) -> None:
        raise RuntimeError("no more memory")

    cell._evaluate = explode  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        cell.run()
    assert {(s["state"], s["reason"]) for s in statuses(cell)} == {
        ("failed", "RuntimeError: no more memory")
    }
    again = cell_of(data, task)
    again.run()
    assert {s["state"] for s in statuses(again)} == {"done"}


def test_a_second_runner_is_refused_and_changes_nothing(data: Path, tmp_path: Path) -> None:
    task = task_of(data, tmp_path, "bc")
    cell = cell_of(data, task)
    with GroupLock(cell.folders[1].path), pytest.raises(RunError, match="is being trained by"):
        cell.run()
    assert not (cell.folders[0].path / "status.json").exists()


def test_seeds_trained_by_another_group_are_not_overwritten(data: Path, tmp_path: Path) -> None:
    """A task planned before somebody else finished one of its seeds."""
    late = task_of(data, tmp_path, "bc")
    cell_of(data, task_of(data, tmp_path, "bc", seeds=1)).run()
    before = sorted((tmp_path / "runs").rglob("seed-0/scores.csv"))[0].read_bytes()
    with pytest.raises(RunError, match="no checkpoint covers them"):
        cell_of(data, late).run()
    assert sorted((tmp_path / "runs").rglob("seed-0/scores.csv"))[0].read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"seeds": 1}, True),
        ({"steps": 10}, False),
        ({"settings": {"lr": "0.1"}}, False),
        ({"eval_episodes": 3}, False),
        ({"profile": "quick"}, False),
    ],
)
def test_what_counts_as_the_papers_protocol(
    changes: dict[str, Any], expected: bool, data: Path, tmp_path: Path
) -> None:
    request = Request(("bc",), (str(data),), profile="paper", out=tmp_path)
    task = make_plan(replace(request, **changes), workers=1).tasks[0]
    assert task.record["paper_protocol"] is expected
