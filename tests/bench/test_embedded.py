"""The embedded datasets: what they promise, and that they survive other formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.data import cards, data_root, expand, export_minari, load
from bench.data.build import Make, make_dataset
from bench.data.card import Card
from bench.data.dataset import episode_returns
from bench.engine import cpu
from bench.envs.pixels import frames
from bench.plan import expand_suites

OURS = [card for name, card in cards().items() if name.startswith("lite/")]
LOCAL = {card.id for card in OURS if card.path and card.path.parent.name == "embedded"}
NAMES = [card.id for card in OURS if {card.id, *card.combine} & LOCAL]


def test_they_are_small() -> None:
    sizes = [path.stat().st_size for path in (data_root() / "embedded").iterdir()]
    assert sum(sizes) < 28e6 and len(sizes) == len(LOCAL)


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_with_its_fingerprint(name: str) -> None:
    """`load` compares the fingerprint; a card without one would not be compared."""
    card = cards()[name]
    assert len(card.fingerprint) == len(card.fingerprint_next) == 64
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


@pytest.mark.parametrize("card", [c for c in OURS if c.id not in NAMES], ids=lambda card: card.id)
def test_the_others_can_be_made(card: Card) -> None:
    """Catches: a set that is neither in git nor says how to have it, or what it should be like."""
    for part in [cards()[name] for name in card.combine] or [card]:
        make = Make.of(part)
        assert make.return_mean and make.tolerance and len(make.fingerprint) == 64
        assert part.path and part.path.parent.name == "made" and part.reference


@pytest.mark.parametrize(
    "name", ["lite/cartpole/random-v0", "lite/twostep/random-v0", "lite/pointmaze/umaze-v0",
             "lite/cartpole/replay-v0", "lite/pendulum/pixels-v0"]
)  # fmt: skip
def test_the_card_makes_the_first_rows_of_the_file(name: str, tmp_path: Path) -> None:
    """Catches: a card, a script or an environment that is no longer what made the file. Before
    training begins only the physics could differ between machines."""
    card = cards()[name]
    if card.env_id.startswith("PointMaze"):
        pytest.importorskip("gymnasium_robotics", reason="the extra [robotics] is not installed")
    short = {**card.recipe["make"], "transitions": 900, "interval": 100_000}
    made = make_dataset(replace(card, recipe={"make": short}), tmp_path, lambda text: None)
    held = load(name).transitions[:900]
    for key in ("observation", "action", ("next", "reward"), ("next", "done")):
        assert torch.equal(made.transitions[key], held[key]), key


def test_replays_go_from_random_to_good() -> None:
    """Catches: a replay set from which nothing good can be learnt."""
    cartpole = episode_returns(load("lite/cartpole/replay-v0").transitions)
    assert cartpole[:20].mean() < 60 and (cartpole == 500).sum() >= 20
    pixels = episode_returns(load("lite/pendulum/pixels-v0").transitions)
    assert pixels[:5].mean() < -900 and pixels[-20:].mean() > -300


def test_pictures_show_the_pendulum_of_the_replay_set() -> None:
    pixels, numbers = (load(f"lite/pendulum/{n}-v0").transitions for n in ("pixels", "replay"))
    assert pixels["observation"].dtype == torch.uint8
    seen = frames(numbers["observation"][: len(pixels)].numpy())
    assert np.array_equal(pixels["observation"].numpy(), seen)
    assert torch.equal(pixels["action"], numbers["action"][: len(pixels)])


def test_uniform_play_of_the_two_step_game_holds_every_outcome() -> None:
    data = load("lite/twostep/random-v0").transitions
    last = data["next", "done"][:, 0]
    assert data["next", "reward"][~last].abs().sum() == 0 and set(data["t"][last].tolist()) == {1}
    outcomes, counts = data["next", "reward"][last, 0].unique(return_counts=True)
    assert outcomes.tolist() == [0, 1, 7, 8]
    expected = [1 / 8, 2 / 8, 4 / 8, 1 / 8]
    assert (counts / counts.sum()).tolist() == pytest.approx(expected, abs=0.02)


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
