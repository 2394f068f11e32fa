"""Every recipe on real data: a few hundred updates of two stacked seeds on the smallest embedded
set that it fits."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

from bench.data import load
from bench.engine.cell import Cell
from bench.engine.trace import matching
from bench.engine.trainer import build_agents
from bench.plan import Request, expand_suites, make_plan, misfit
from bench.recipe import load_recipe
from bench.recipes import recipe_names

STEPS = 200
# What keeps a recipe from being small besides its quick profile.
SMALLER = {
    "edac": {"critics": "4"},
    "sac_n": {"critics": "4"},
    "redq": {"critics": "4"},
    "dreamer": {"model_steps": "100", "length": "8", "horizon": "5"},
    **{n: {"clone_steps": "100"} for n in ("ppo", "clip_ppo", "kl_ppo", "a2c", "reinforce")},
}


def smallest(algo: str) -> str:
    """The first set of the suite that the recipe fits."""
    fitting = (d for d in expand_suites(["smoke"]) if not misfit(load_recipe(algo), load(d)))
    found = next(fitting, None)
    assert found, f"no set of bench/suites/smoke.toml fits {algo}: add one"
    return found


@pytest.mark.parametrize("algo", recipe_names())
def test_two_seeds_learn_something(algo: str, tmp_path: Path) -> None:
    """Catches: a recipe that does not fit real data or lacks a setting that the cell reads, whose
    loss is not finite, that leaves something untrained, whose stacked seeds are the same, a policy
    that draws noise, and a recipe that the suite forgot."""
    dataset = smallest(algo)
    request = Request(
        (algo,),
        (dataset,),
        seeds=2,
        steps=STEPS,
        out=tmp_path,
        settings=SMALLER.get(algo, {}),
        eval_interval=STEPS // 4,
        eval_episodes=1,
    )
    (task,) = make_plan(request, workers=1).tasks
    cell = Cell(task, load(dataset), lambda event: None)
    cell.run()
    assert [folder.status()["state"] for folder in cell.folders] == ["done", "done"]
    for folder in cell.folders:
        rows = csv.DictReader((folder.path / "scores.csv").read_text().splitlines())
        assert [int(row["step"]) for row in rows] == [50, 100, 150, 200]
    seen = [_losses(folder.path / "metrics.csv") for folder in cell.folders]
    assert seen[0]
    assert all(math.isfinite(v) for run in seen for values in run.values() for v in values)
    trainer, build = cell.trainer, lambda: cell.recipe.build(cell.hyper, cell.problem)
    start = build_agents(build, task.seeds)[0].loss.tensors()
    groups = [group for phase in trainer.agent.phases for group in phase.groups]
    for name in matching(list(start), [prefix for group in groups for prefix in group.tensors]):
        if isinstance(start[name], torch.nn.Parameter):
            first, second = trainer.tensors[name]
            assert not torch.equal(first, start[name]), f"{name} was not trained"
            assert not torch.equal(first, second), f"{name} is the same in both seeds"


def _losses(path: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in csv.DictReader(path.read_text().splitlines()):
        if "/loss_" in row["name"]:
            found.setdefault(row["name"], []).append(float(row["value"]))
    return found
