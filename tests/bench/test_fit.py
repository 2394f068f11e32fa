"""Which algorithms are trained on which datasets."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

from bench.data.card import cards
from bench.errors import ConfigError
from bench.plan import Request, _domain, make_plan
from bench.recipe import load_recipe
from bench.recipes import recipe_names

DISCRETE, TEAM, BOX = "lite/cartpole/random-v0", "lite/twostep/random-v0", "lite/pendulum/random-v0"


def plan(tmp_path: Path, algos: str, *datasets: str) -> tuple[set[tuple[str, str]], list[str]]:
    request = Request(tuple(algos.split()), datasets, seeds=1, out=tmp_path)
    found = make_plan(request, workers=1)
    pairs = {(task.algorithm, task.record["dataset"]) for task in found.tasks}
    return pairs, [note for note in found.notes if "do not fit" in note]


def test_a_glob_leaves_out_what_does_not_fit_and_says_so(tmp_path: Path) -> None:
    pairs, notes = plan(tmp_path, "d*", DISCRETE)
    fitting = {"dqn", "discrete_cql", "discrete_iql", "discrete_sac"}
    assert pairs == {(algo, DISCRETE) for algo in fitting}
    (note,) = notes
    assert note.startswith(f"note: left out on {DISCRETE}") and "ddpg" in note and "dqn" not in note


def test_a_suite_pairs_each_algorithm_with_what_it_fits(tmp_path: Path) -> None:
    pairs, notes = plan(tmp_path, "bc dqn qmix", "smoke")
    assert {("bc", BOX), ("dqn", DISCRETE), ("qmix", TEAM)} <= pairs
    assert ("qmix", DISCRETE) not in pairs and ("bc", DISCRETE) not in pairs
    assert any(DISCRETE in note and note.endswith("bc, qmix") for note in notes)


@pytest.mark.parametrize(
    ("algos", "datasets", "message"),
    [
        ("bc", [DISCRETE], "bc needs continuous actions and lite/cartpole/random-v0 has discrete"),
        ("bc dqn", [BOX], "dqn needs discrete actions"),
        ("qmix", [DISCRETE], "qmix trains on data of twostep and .* is of cartpole"),
        ("di*", [BOX], "none of these algorithms fits any of these datasets"),
    ],
)
def test_a_pair_that_was_spelled_out_is_refused(
    tmp_path: Path, algos: str, datasets: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, algos, *datasets)


@pytest.mark.parametrize("algo", recipe_names())
def test_every_pattern_of_a_recipe_is_some_datasets(algo: str) -> None:
    """Catches: settings of a misspelt dataset or family, which nobody would ever get."""
    known = {n for c in cards().values() for n in (c.id, c.family, _domain(c.family))}
    for pattern, _ in load_recipe(algo).overrides:
        assert any(fnmatch(name, pattern) for name in known), pattern


@pytest.mark.parametrize(
    ("algo", "names", "expected"),
    [
        ("rebrac", ("d4rl/hopper-medium-v2", "hopper", "gym-mujoco"), (0.01, 0.01)),
        ("rebrac", ("d4rl/hopper-medium-replay-v2", "hopper", "gym-mujoco"), (0.05, 0.5)),
        ("rebrac", ("mujoco/walker2d/expert-v0", "walker2d", "gym-mujoco"), (0.01, 0.5)),
        ("rebrac", ("d4rl/pen-human-v1", "pen", "adroit"), (0.1, 0.5)),
    ],
)
def test_overrides_are_of_the_dataset_named(
    algo: str, names: tuple[str, ...], expected: tuple[float, float]
) -> None:
    """Catches: 'medium' that also takes 'medium-replay'; the authors' values, appendix B."""
    hyper = load_recipe(algo).hyperparameters(names, "paper", {})
    assert (hyper.actor_bc, hyper.critic_bc) == expected


@pytest.mark.parametrize("algo", ["clip_ppo", "dreamer"])
def test_a_run_that_ends_before_its_policy_learns_is_refused(algo: str, tmp_path: Path) -> None:
    """Catches: behaviour cloning, or an actor that never learned, under another name."""
    with pytest.raises(ConfigError, match=r"begins to learn its policy after .* raise --steps"):
        make_plan(Request((algo,), (BOX,), seeds=1, steps=1_000, out=tmp_path), workers=1)
