"""The scripted walk through a point maze."""

from __future__ import annotations

import numpy as np
import pytest

from bench.data import cards
from bench.engine.trainer import stream_seed
from bench.errors import ConfigError
from bench.evaluate import make_env
from bench.online.waypoints import Controller, shortest_path, waypoint_play

ENV = "PointMaze_UMaze-v3"
MAZE = [[1, 1, 1, 1, 1], [1, 0, "g", 0, 1], [1, 1, 1, "r", 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]


def test_the_shortest_path() -> None:
    assert shortest_path(MAZE, (1, 1), (3, 2)) == [(1, 2), (1, 3), (2, 3), (3, 3), (3, 2)]
    assert shortest_path(MAZE, (3, 2), (3, 2)) == []
    with pytest.raises(ConfigError, match=r"no way from cell \(1, 1\) to cell \(3, 3\)"):
        shortest_path([*MAZE[:2], [1, 1, 1, 1, 1], *MAZE[3:]], (1, 1), (3, 3))


@pytest.fixture(scope="module")
def walk() -> dict[str, np.ndarray]:
    pytest.importorskip("gymnasium_robotics", reason="the extra [robotics] is not installed")
    return waypoint_play(ENV, 1500, 0)


def test_a_walk_goes_from_goal_to_goal(walk: dict[str, np.ndarray]) -> None:
    """Catches: one episode without end, the next goal in the observation that ends an episode,
    the old goal in the one that begins the next."""
    ends = np.flatnonzero(walk["truncated"][:, 0])
    assert len(ends) > 5 and not walk["terminated"].any() and set(np.diff(ends) < 300) == {True}
    assert np.array_equal(walk["reward"][:, 0], walk["truncated"][:, 0])  # every goal is reached
    seen, after = walk["observation"], walk["next_observation"]
    assert np.array_equal(seen[1:, 4:], after[:-1, 4:])  # it never jumps
    assert np.array_equal(after[:, 2:4], seen[:, 2:4])  # within a row the goal stays
    changed = (seen[1:, 2:4] != seen[:-1, 2:4]).any(1)
    assert np.array_equal(np.flatnonzero(changed), ends)
    reached = np.linalg.norm(after[ends, :2] - after[ends, 2:4], axis=1)
    assert (reached <= 0.4501).all()
    assert np.abs(walk["action"]).max() <= 1 and walk["action"].std(0).min() > 0.3


def test_a_seed_fixes_the_walk(walk: dict[str, np.ndarray]) -> None:
    again, other = waypoint_play(ENV, 700, 0), waypoint_play(ENV, 700, 1)
    for key, value in again.items():
        assert np.array_equal(value, walk[key][:700]), key
    assert not np.array_equal(other["action"], again["action"])


def test_an_episode_that_misses_its_goal_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium_robotics", reason="the extra [robotics] is not installed")
    monkeypatch.setattr(Controller, "act", lambda *_: np.zeros(2, np.float32))
    found = waypoint_play(ENV, 650, 0)
    assert np.flatnonzero(found["truncated"][:, 0]).tolist() == [299, 599]
    assert not np.array_equal(found["observation"][0], found["observation"][300])


def test_only_point_mazes_have_waypoints() -> None:
    with pytest.raises(ConfigError, match="PointMaze"):
        waypoint_play("Pendulum-v1", 10, 0)


MAZES = [n for n, card in cards().items() if card.family == "maze2d" and not card.not_evaluated]


@pytest.mark.slow
@pytest.mark.parametrize("name", MAZES)
def test_the_references_of_the_cards(name: str) -> None:
    """Mean returns of 100 evaluation episodes: uniform actions, the controller without noise, and
    as it made the data."""
    pytest.importorskip("gymnasium_robotics", reason="the extra [robotics] is not installed")
    card = cards()[name]
    env, returns = make_env(card.env_id, card.horizon), np.zeros((3, 100))
    for episode in range(100):
        start = stream_seed(0, 2, episode)
        for row, noise in enumerate((None, 0.0, 0.5)):
            rng, ended = np.random.default_rng(start), False
            observation, _ = env.reset(seed=start % 2**31)
            controller = Controller(env.unwrapped.maze, noise or 0.0)
            controller.plan(observation[4:6], env.unwrapped.goal)
            while not ended:
                uniform = 2 * rng.random(2) - 1
                action = uniform if noise is None else controller.act(observation, rng)
                observation, reward, _, ended, _ = env.step(action)
                returns[row, episode] += reward
    ends, behaviour = card.reference, card.behaviour
    assert ends is not None and behaviour is not None
    found = (ends.random, ends.expert, behaviour.mean_return)
    assert returns.mean(1) == pytest.approx(found, abs=0.06)
    assert (returns[1:] > 0).all()
