"""Environments of our own, and those that come as dictionaries."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from bench import envs
from bench.data import DataWarning, load
from bench.data import envs as data_envs
from bench.engine.evaluation import Setup
from bench.envs.pixels import frames
from bench.envs.two_step import LAYOUT, Layout
from bench.evaluate import Evaluator, make_env
from bench.recipe import Problem
from rlobj.specs import Bounded, Categorical
from tests.bench.data_files import columns, write

ROOT = Path(__file__).parents[2]


def play(*actions: int) -> list[float]:
    env = make_env("bench/TwoStep-v0")
    env.reset(seed=0)
    return [env.step(a)[1] for a in actions]


def test_the_two_step_game_pays_as_in_the_paper() -> None:
    """Table 1 of arXiv:1803.11485, with the first agent's first action as the choice."""
    joint = [(a0, a1) for a0 in (0, 1) for a1 in (0, 1)]
    pays = {(first, second): play(2 * first[0] + first[1], 2 * second[0] + second[1])
            for first in joint for second in joint}  # fmt: skip
    matrix = {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 1.0, (1, 1): 8.0}
    for (first, second), rewards in pays.items():
        assert rewards == [0.0, 7.0 if first[0] == 0 else matrix[second]]


def test_both_agents_see_where_they_are() -> None:
    env = make_env("bench/TwoStep-v0")
    places = [env.reset()[0]]
    for action in (2, 3):
        observation, _, terminated, truncated, _ = env.step(action)
        places.append(observation)
    assert (terminated, truncated) == (True, False)
    joint = torch.tensor(np.stack(places))
    assert LAYOUT.states(joint).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    own = LAYOUT.observations(joint)
    assert own.shape == (3, 2, 5)
    for agent in (0, 1):
        assert torch.equal(own[:, agent, :3], LAYOUT.states(joint))
        assert own[:, agent, 3:].tolist() == [[1 - agent, agent]] * 3


def test_joint_actions_come_apart_and_together() -> None:
    layout = Layout(agents=3, observation=1, state=1, actions=4)
    joint = torch.arange(64)
    split = layout.split(joint)
    assert split[27].tolist() == [1, 2, 3] and torch.equal(layout.join(split), joint)
    assert torch.equal(layout.split(joint.float()), split)  # as the engine keeps them


def test_the_rod_points_where_it_should() -> None:
    """gymnasium draws the angle anticlockwise from upright."""
    angles = np.array([0.0, np.pi / 2, np.pi, -np.pi / 2])
    pictures = frames(np.stack([np.cos(angles), np.sin(angles), angles], 1)).astype(float)
    weight = pictures / pictures.sum((1, 2), keepdims=True)
    axis = np.arange(16) - 7.5
    right, up = (weight.sum(1) * axis).sum(1), -(weight.sum(2) * axis).sum(1)
    assert right == pytest.approx([0, -3.5, 0, 3.5], abs=0.3)
    assert up == pytest.approx([3.5, 0, -3.5, 0], abs=0.3)
    assert pictures.max() == 255 and (pictures == 0).mean() > 0.7


def test_our_environments_are_described_and_evaluated() -> None:
    """Catches: an id that only `gymnasium.make` knows, or only after something else ran."""
    info = data_envs.describe("bench/PixelPendulum-v0")
    assert info.observation_width is None and info.actions.high == [2.0]
    assert data_envs.step_limit("bench/PixelPendulum-v0") in (None, 200)
    assert data_envs.describe("bench/TwoStep-v0").actions.n == 4

    class Still:
        def reset(self, seeds: int, episodes: int) -> None: ...
        def observe(self, reward: torch.Tensor) -> None: ...
        def act(self, observation: torch.Tensor) -> torch.Tensor:
            assert observation.shape == (1, 2, 256) and observation.max() == 255
            return torch.zeros(1, 2, 1)

    found = Evaluator("bench/PixelPendulum-v0", [0], 2).run(Still(), 0)
    plain = Evaluator("Pendulum-v1", [0], 2).run(_Plain(), 0)
    assert found.lengths.tolist() == [[200, 200]] and (found.returns == plain.returns).all()


class _Plain:
    def reset(self, seeds: int, episodes: int) -> None: ...

    def observe(self, reward: torch.Tensor) -> None: ...

    def act(self, observation: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 2, 1)


def test_dictionaries_come_as_one_vector() -> None:
    pytest.importorskip("gymnasium_robotics", reason="the extra [robotics] is not installed")
    env = make_env("PointMaze_UMaze-v3")
    observation, _ = env.reset(seed=0)
    assert observation.shape == (8,) and env.spec.max_episode_steps == 300
    assert observation[:2].tolist() == observation[4:6].tolist()
    assert observation[2:4].tolist() == env.unwrapped.goal.tolist()
    assert data_envs.describe("PointMaze_UMaze-v3").observation_width == 8


@pytest.mark.parametrize("discrete", [True, False])
def test_evaluating_processes_learn_the_actions(discrete: bool) -> None:
    """Catches: an action space that is lost or changed on its way to them."""
    bounds = Bounded(torch.tensor([-0.1, -2.0]), torch.tensor([0.3, 2.0]))
    problem = Problem(4, Categorical(3) if discrete else bounds, 70, torch.ones(4), None)
    setup = Setup("dqn", {}, problem, "CartPole-v1", None, (0, 1), 2)
    back = Setup.from_json(json.loads(json.dumps(setup.to_json()))).problem
    assert (back.observation, back.max_timestep, back.std) == (4, 70, None)
    if discrete:
        assert back.n_actions == 3
    else:
        assert torch.equal(back.action.low, bounds.low)
        assert torch.equal(back.action.high, bounds.high)


# --------------------------------------------------- what is wrong with others' environments


def test_a_package_says_nothing_of_environments_that_nobody_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: other notices that go under with the one on Adroit."""

    def chatty(name: str) -> ModuleType:
        print("AdroitHandDoorDense-v1 ...", file=sys.stderr)
        print("something else is broken", file=sys.stderr)
        return import_module(name)

    monkeypatch.setattr(envs.importlib, "import_module", chatty)
    assert envs._imported("json") is json
    assert capsys.readouterr().err == "something else is broken\n"


def test_a_point_maze_is_made_in_silence() -> None:
    pytest.importorskip("gymnasium_robotics", reason="the extra [robotics] is not installed")
    code = "from bench.evaluate import make_env; make_env('PointMaze_UMaze-v3')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("env_id", "version", "wrong"),
    [
        ("AdroitHandDoor-v1", "1.2.0", False),
        ("AdroitHandDoor-v1", "1.2.1", True),
        ("AdroitHandHammer-v1", "1.3.1", True),
        ("AdroitHandRelocate-v1", "1.4.2", True),
        ("AdroitHandRelocate-v1", "1.4.3", False),
        ("AdroitHandRelocate-v1", "1.10.0", False),
        ("AdroitHandDoorSparse-v1", "1.4.2", False),
        ("AdroitHandDoor-v2", "1.4.3", False),
        ("AdroitHandPen-v1", "1.4.2", False),
        ("Hopper-v5", "1.4.2", False),
    ],
)
def test_which_environments_pay_with_the_wrong_sign(
    env_id: str, version: str, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    found = envs.caution(env_id)
    assert bool(found) == wrong and (version in found) == wrong


def test_data_of_such_an_environment_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gymnasium_robotics", reason="the extra [robotics] is not installed")
    monkeypatch.setattr(metadata, "version", lambda name: "1.4.2")
    data = columns()
    data = {k: np.zeros((len(v), 39), np.float32) if "observations" in k else v
            for k, v in data.items()}  # fmt: skip
    data["actions"] = np.zeros((len(data["rewards"]), 28), np.float32)
    for task, said in (("Door", 1), ("DoorSparse", 0)):
        file = write(tmp_path / f"{task}.hdf5", data, {"env_id": f"AdroitHand{task}-v1"})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DataWarning)
            assert load(str(file)).env_id == f"AdroitHand{task}-v1"
        assert sum("which D4RL charges" in str(w.message) for w in caught) == said
