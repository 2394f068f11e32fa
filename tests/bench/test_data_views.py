"""Transitions over several steps: the numbers, and that every loss discounts by them."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.cli import main
from bench.data import load
from bench.data.views import n_step
from bench.engine.cell import Cell
from bench.engine.problem import problem_of, training_table
from bench.engine.sampling import gather
from bench.engine.trainer import build_agents
from bench.plan import Request, make_plan
from bench.recipe import load_recipe
from bench.recipes import recipe_names
from tests.bench.conftest import numbered
from tests.bench.data_files import columns, without, write
from tests.bench.test_engine import SMALL

TD = [n for n in recipe_names() if any(f.name == "n_step" for f in fields(load_recipe(n).hyper))]


@pytest.mark.parametrize("n", [1, 2, 3, 9])
@pytest.mark.parametrize("finals", [True, False])
def test_n_steps(tmp_path, n, finals):
    """Catches: a step of the next episode, a count that is off, the flags of the first step, a
    bootstrap from an unknown observation."""
    data = columns((4, 1, 6), "XT-")
    td = load(write(tmp_path / "a.hdf5", data if finals else without(data, "final_observations")))
    td, gamma = td.transitions, 0.9
    found = n_step(td, td["t"], n, gamma)
    before = td.clone()
    for row in range(len(td)):
        last, total = row, 0.0
        for k in range(n):
            if row + k >= len(td) or td["episode"][row + k] != td["episode"][row]:
                break
            last, total = row + k, total + gamma**k * td["next", "reward"][row + k].item()
        assert found["next", "reward"][row].item() == pytest.approx(total, abs=1e-6)
        assert found["steps_to_next_obs"][row].item() == last - row + 1
        for key in (("next", "observation"), ("next", "terminated"), ("next", "truncated")):
            assert torch.equal(found[key][row], td[key][last])
        assert found["valid_next"][row] == td["valid_next"][last]
    assert torch.equal(found["observation"], td["observation"])
    assert all(torch.equal(before[key], td[key]) for key in before.keys(True, True))


def test_one_step_is_the_data(tmp_path):
    td = load(write(tmp_path / "a.hdf5", columns())).transitions
    found = n_step(td, td["t"], 1, 0.99)
    assert torch.equal(found["next", "reward"], td["next", "reward"])
    assert (found["steps_to_next_obs"] == 1).all()
    for n, t in ((0, td["t"]), (2, td["t"][1:])):
        with pytest.raises(ValueError, match="n_step: n is"):
            n_step(td, t, n, 0.99)


def test_who_has_it() -> None:
    """All whose targets bootstrap from single transitions."""
    others = {"bc", "bc10", "dt", "online_dt", "dreamer", "qmix"}
    on_policy = {"ppo", "clip_ppo", "kl_ppo", "a2c", "reinforce"}
    assert set(TD) == set(recipe_names()) - others - on_policy


def terms(name: str, dataset: SimpleNamespace, gamma: float, steps: int | None) -> dict[str, Any]:
    """What the phases of a recipe compute on the same batch, said to span so many steps."""
    recipe = load_recipe(name)
    dataset = numbered(dataset) if recipe.discrete else dataset
    hyper = replace(recipe.hyper(), **SMALL[name], gamma=gamma)
    problem = problem_of(dataset, SimpleNamespace(normalize=False))
    fixed = replace(hyper, gamma=0.9)  # which the table may depend on, too
    sampler = recipe.sampler(
        fixed, training_table(recipe, fixed, dataset.transitions, problem), torch.device("cpu")
    )
    batch = gather(sampler, torch.arange(5).unsqueeze(0))[0]
    if steps is not None:
        batch["steps_to_next_obs"] = torch.full((5, 1), float(steps))
    agent = build_agents(lambda: recipe.build(hyper, problem), [0])[0]
    found = {}
    with agent.loss.bind({}):
        for phase in agent.phases:
            torch.manual_seed(1)
            found |= {f"{phase.name}/{k}": v for k, v in phase.terms(agent.loss, batch).items()}
    return found


@pytest.mark.parametrize("name", TD)
def test_every_loss_discounts_by_the_number_of_steps(name: str, dataset: SimpleNamespace) -> None:
    """Catches: a loss with a target of its own that takes gamma as it is."""
    given = terms(name, dataset, 0.9, 3)
    expected, plain = (terms(name, dataset, g, None) for g in (0.9**3, 0.9))
    for key, value in given.items():
        assert torch.allclose(value, expected[key], atol=1e-6), key
    assert any(not torch.allclose(given[key], plain[key]) for key in given)


@pytest.mark.parametrize("name", ["td3_bc", "rebrac", "cal_ql", "dqn"])
def test_the_table_of_a_recipe_spans_the_steps(name: str, dataset: SimpleNamespace) -> None:
    """Catches: rewards that are scaled after they were summed, or not at all; the action that
    follows the first step where that of the last is meant."""
    recipe = load_recipe(name)
    dataset = numbered(dataset) if recipe.discrete else dataset
    one = replace(recipe.hyper(), **SMALL[name], gamma=0.9)
    problem = problem_of(dataset, SimpleNamespace(normalize=False))
    plain, found = (
        training_table(recipe, hp, dataset.transitions, problem)
        for hp in (one, replace(one, n_step=3))
    )
    reward = plain["next", "reward"][:, 0]
    total = (reward[0] + 0.9 * reward[1] + 0.81 * reward[2]).item()
    assert found["next", "reward"][0].item() == pytest.approx(total, abs=1e-5)
    assert found["steps_to_next_obs"][:9, 0].tolist() == [3.0] * 7 + [2.0, 1.0]
    for key in found["next"].keys():  # noqa: SIM118
        if key != "reward":
            assert torch.equal(found["next", key][0], plain["next", key][2]), key
    assert "steps_to_next_obs" not in plain.keys()  # noqa: SIM118


def test_the_setting_from_the_command_line(tmp_path, capsys) -> None:
    """Catches: a setting that reaches no run, one that moves runs without it to another folder, and
    one that is taken where it does nothing."""

    def planned(**settings: str) -> Any:
        small = {"hidden": "8", "batch_size": "8", **settings}
        request = Request(
            ("td3_bc",), ("lite/pendulum/random-v0",), steps=4, device="cpu", settings=small,
            out=tmp_path, seeds=1,
        )  # fmt: skip
        return make_plan(request, 1).tasks[0]

    none, one, three = planned(), planned(n_step="1"), planned(n_step="3")
    assert none.config == one.config != three.config and "n_step" not in none.hyper
    cell = Cell(three, load(three.dataset), lambda event: None)
    assert cell.hyper.n_step == 3 and "steps_to_next_obs" in cell.trainer.sampler.keys
    words = ["run", "--dataset", "lite/pendulum/random-v0", "--steps", "4", "--out", str(tmp_path)]
    for algo, value in (("td3_bc", "n_step=0"), ("bc", "n_step=3")):
        assert main([*words, "--algo", algo, "--set", value]) == 2
        assert "n_step" in capsys.readouterr().err
    making = ["data", "make", "--env-id", "Pendulum-v1", "--kind", "replay", "--out", str(tmp_path)]
    assert main([*making, "--to", str(tmp_path / "a.hdf5"), "--set", "n_step=3"]) == 2
    assert "is for data on disk" in capsys.readouterr().err
