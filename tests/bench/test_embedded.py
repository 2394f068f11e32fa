"""The embedded datasets: what they promise, and that they survive other formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.data import cards, data_root, expand, export_minari, load
from bench.data.build import Make, make_dataset
from bench.engine import cpu
from bench.plan import expand_suites

NAMES = [name for name in cards() if name.startswith("lite/")]


def test_they_are_small() -> None:
    sizes = [path.stat().st_size for path in (data_root() / "embedded").iterdir()]
    assert sum(sizes) < 20e6


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_with_its_fingerprint(name: str) -> None:
    """`load` compares the fingerprint; a card without one would not be compared."""
    card = cards()[name]
    assert len(card.fingerprint) == 64
    dataset = load(name)
    assert dataset.unit == "normalized" and dataset.env_id == card.env_id
    assert dataset.transitions["valid_next"].all()
    if not card.combine:
        make = Make.of(card)
        assert make.transitions == len(dataset.transitions)
        assert dataset.stats["return_mean"] == pytest.approx(make.return_mean, abs=0.06)


def test_levels_are_what_their_names_say() -> None:
    """Medium lies between a third and two thirds of expert; expert hops most of its episodes."""
    medium, expert = (load(f"lite/hopper/{level}-v0") for level in ("medium", "expert"))
    share = medium.stats["return_mean"] / expert.stats["return_mean"]
    assert 1 / 3 < share < 2 / 3
    assert expert.stats["return_mean"] > 2500
    assert expert.stats["truncated"] > expert.stats["episodes"] / 2


def test_the_suite_names_datasets_that_exist() -> None:
    names = expand_suites(["lite"])
    assert len(names) > 1 and set(names) <= set(expand(names)) <= set(NAMES)
    assert expand_suites(["lite/hopper/medium-v0"]) == ["lite/hopper/medium-v0"]


def test_round_trip_through_minari(tmp_path: Path) -> None:
    dataset = load("lite/hopper/random-v0")
    export_minari(dataset, "lite/hopper/random-v0", tmp_path)
    back = load(str(next(p for p in tmp_path.rglob("data")).parent))
    assert back.fingerprint == dataset.fingerprint
    for key in dataset.transitions.keys(True, True):
        assert torch.equal(back.transitions[key], dataset.transitions[key]), key


def test_random_sets_are_made_again_bit_for_bit(tmp_path: Path) -> None:
    """Uniform actions need no training, so only the physics could differ between machines."""
    card = cards()["lite/pendulum/random-v0"]
    made = make_dataset(card, tmp_path, lambda text: None)
    good, text = made.verdict(card, Make.of(card))
    assert good, text


def test_training_data_does_not_depend_on_how_far_a_run_was_asked_to_go(tmp_path: Path) -> None:
    """Catches: a run cut in the middle of an episode, which would start the next one early."""
    from bench.online.collect import Collection
    from bench.recipe import load_recipe

    recipe = load_recipe("sac")
    hyper = recipe.hyper(hidden=(8, 8), batch_size=8, start_steps=100)

    def seen(steps: list[int], folder: str) -> torch.Tensor:
        for n in steps:
            run = Collection(recipe, hyper, "Pendulum-v1", 0, n, tmp_path / folder, interval=200)
            run.run()
        return run.replay.data["action"][:700]

    threads = torch.get_num_threads()
    cpu.prepare()
    try:
        assert torch.equal(seen([300, 700], "twice"), seen([700], "once"))
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
