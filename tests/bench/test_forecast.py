"""`bench plan`: what a plan takes, and what a budget buys. Costs are literal, speeds made up."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from bench import cli_plan, forecast
from bench.cli import main
from bench.engine.calibrate import Speed
from bench.engine.task import Task
from bench.errors import ConfigError
from bench.forecast import Cost

MINUTE = 60.0


def cost(
    dataset: str, algorithm: str, seeds: tuple[int, ...], seconds: float, **more: object
) -> Cost:
    """A task that takes ``seconds``, all of them updates."""
    record = {"dataset": dataset, "label": algorithm.upper(), "env_id": None, "horizon": None}
    task = Task("out", dataset, None, algorithm, "0", seeds, 100, {}, 100, 1, record=record, **more)
    return Cost(task, Speed(0.0, ((1, seconds / 100),), 0.0, 10**9), done=0, episode=0)


def four(seconds: dict[tuple[str, str], float]) -> list[Cost]:
    """Two groups of two seeds for each cell; ``seconds`` are those of one seed."""
    return [cost(*cell, g, 2 * s) for cell, s in seconds.items() for g in ((0, 1), (2, 3))]


GRID = {("b", "slow"): 10.0, ("b", "fast"): 2.0, ("a", "slow"): 5.0, ("a", "fast"): 1.0}


def test_time_of_stages_and_evaluations() -> None:
    """100 updates at 1 s, 900 at 2 s; two evaluations and the last one, of 50 steps each."""
    task = dataclasses.replace(
        cost("a", "x", (0, 1), 0).task, steps=1000, eval_interval=400, eval_episodes=5
    )
    found = Cost(task, Speed(7.0, ((1, 1.0), (101, 2.0)), 0.01, 0), done=0, episode=50)
    assert found.training == 100 + 1800
    assert found.evaluating == pytest.approx(3 * 2 * 5 * 50 * 0.01)
    assert found.seconds == pytest.approx(7 + 1900 + 15)
    late = dataclasses.replace(found, done=500)
    assert (late.training, late.evaluating) == (1000, pytest.approx(10))
    beside = dataclasses.replace(found, task=dataclasses.replace(task, eval_workers=2))
    assert beside.seconds == pytest.approx(7 + 1900)  # they go on meanwhile
    asked = dataclasses.replace(task, hyper={"target_returns": [1.0, 2.0]})
    assert dataclasses.replace(found, task=asked).evaluating == pytest.approx(30)


def test_workers_take_tasks_in_order() -> None:
    assert forecast.makespan([3, 1, 1, 4], 2) == 6  # 3 | 1 1 4
    assert forecast.makespan([], 2) == 0


def test_a_budget_goes_to_breadth_first_and_whole_datasets() -> None:
    choice = forecast.choose(four(GRID), 18.0, workers=1)  # one seed of everything
    assert set(choice.seeds.values()) == {1}
    assert [step.cells for step in choice.steps] == [
        (("a", "fast"), ("a", "slow")),
        (("b", "fast"), ("b", "slow")),
    ]
    more = forecast.choose(four(GRID), 18 + 2 + 10, workers=1)  # and of `a` what makes intervals
    assert more.seeds == {("a", "fast"): 3, ("a", "slow"): 3, ("b", "fast"): 1, ("b", "slow"): 1}
    assert [round(step.seconds) for step in more.steps] == [6, 12, 12]
    everything = forecast.choose(four(GRID), 72.0, workers=1)
    assert set(everything.seeds.values()) == {4} and not everything.left_out


def test_what_ends_too_late_is_left_out_whatever_the_number_of_workers() -> None:
    """Eight workers have 72 s of work in 9 s, but no worker does the slow cell in 9 s."""
    choice = forecast.choose(four(GRID), 9.0, workers=8)
    assert choice.left_out == (("b", "slow"),)
    kept = forecast.with_seeds(four(GRID), choice.seeds)
    assert forecast.makespan([c.seconds for c in kept], 8) <= 9.0


def test_seeds_that_are_there_cost_nothing() -> None:
    rest = [cost("a", "x", (2, 3), 10.0)]
    choice = forecast.choose(rest, 5.0, workers=1)
    assert choice.seeds == {("a", "x"): 3}
    assert forecast.choose(rest, 4.0, workers=1).left_out == (("a", "x"),)


def test_on_a_gpu_the_seeds_of_a_cell_come_together() -> None:
    found = [cost("a", "x", tuple(range(5)), 10.0, device="cuda"),
             cost("a", "y", tuple(range(5)), 30.0, device="cuda")]  # fmt: skip
    choice = forecast.choose(found, 20.0, workers=1)
    assert choice.seeds == {("a", "x"): 5, ("a", "y"): 0} and choice.left_out == (("a", "y"),)


def test_the_commands_of_a_choice() -> None:
    seeds = {("a", "x"): 3, ("a", "y"): 3, ("b", "x"): 1, ("b", "y"): 0}
    assert list(cli_plan.commands(seeds)) == [("a", ["x", "y"], 3), ("b", ["x"], 1)]
    lines = list(cli_plan.budget(four(GRID), 1, 18.0, " --steps 9"))
    assert lines[0] == "a budget of 18 s takes 4 of 16 runs, about 18 s on 1 worker:"
    assert lines[-1] == "  bench run --algo slow fast --dataset a --seeds 1 --steps 9"
    with pytest.raises(ConfigError, match="the cheapest seed takes about 1 s; raise it"):
        list(cli_plan.budget(four(GRID), 1, 0.5, ""))


def test_memory_that_is_not_there_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.engine.memory.machine", lambda: 25 * 10**8)
    lines = list(cli_plan.totals(four(GRID), workers=4))
    assert lines[1:] == ["4.0 GB of memory where the largest meet, of 2.5 GB",
                         "that does not fit: use --workers 2"]  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), [("30min", 1800), ("1.5h", 5400), ("2d", 172800)])
def test_durations(text: str, seconds: float) -> None:
    assert cli_plan.duration(text) == seconds


@pytest.mark.parametrize("text", ["8", "h", "0h", "-1h", "8 hours", "1e3s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time like 30min"):
        cli_plan.duration(text)


def test_the_command_measures_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves no run folder behind."""
    what = ["--algo", "bc", "--dataset", "lite/pendulum/random-v0", "--steps", "3000"]
    where = ["--workers", "1", "--seeds", "1", "--out", str(tmp_path), "--budget", "8h"]
    command = ["plan", *what, *where]
    assert main(command) == 0
    first = capsys.readouterr()
    assert "measuring the speed of a program," in first.err
    assert "BC" in first.out and "bench run --algo bc" in first.out
    assert not (tmp_path / "runs").exists()

    def refuse(*args: object) -> Speed:
        raise AssertionError("measured again")

    monkeypatch.setattr(forecast, "_measured", refuse)
    assert main(command) == 0
    assert capsys.readouterr().out == first.out
