"""The scripted behaviour behind D4RL's maze2d and Minari's pointmaze sets (Fu et al. 2020,
arXiv:2004.07219, section 5): a shortest path over the maze's cells, a PD controller from one cell
centre to the next, Gaussian noise on its actions, and a new goal whenever one is reached."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from bench.engine.trainer import stream_seed
from bench.errors import ConfigError
from bench.evaluate import make_env
from bench.online.replay import Replay, problem_of

_STREAM = 6
_GAIN, _DAMPING = 10.0, 1.0  # of the distance and of the speed, D4RL's waypoint_controller.py
_NOISE = 0.5  # sd, before actions are clipped
_NEAR = 0.1  # a waypoint this close is passed
_FOREVER = 10**9

Cell = tuple[int, int]  # row, column


def shortest_path(walls: list[list[Any]], start: Cell, goal: Cell) -> list[Cell]:
    """The cells after ``start`` up to ``goal``, by breadth-first search; cells that hold 1 are
    walls.

    Raises:
        ConfigError: when no way leads there.
    """
    before: dict[Cell, Cell] = {goal: goal}
    queue = deque([goal])
    while queue and start not in before:
        row, column = queue.popleft()
        for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if walls[cell[0]][cell[1]] != 1 and cell not in before:
                before[cell] = (row, column)
                queue.append(cell)
    if start not in before:
        raise ConfigError(f"the maze has no way from cell {start} to cell {goal}")
    path = []
    while start != goal:
        start = before[start]
        path.append(start)
    return path


class Controller:
    """Follows the shortest path to a goal.

    Args:
        maze: gymnasium_robotics' maze: its map, and what cells and places have to do.
        noise: sd of what is added to the actions.
    """

    def __init__(self, maze: Any, noise: float = _NOISE) -> None:
        self.maze, self.noise = maze, noise
        self.targets: list[np.ndarray] = []

    def _cell(self, place: np.ndarray) -> Cell:
        row, column = self.maze.cell_xy_to_rowcol(place)
        return int(row), int(column)

    def plan(self, place: np.ndarray, goal: np.ndarray) -> None:
        """Have the way from a place to a goal, ``[2]`` each, ahead."""
        path = shortest_path(self.maze.maze_map, self._cell(place), self._cell(goal))
        centres = [self.maze.cell_rowcol_to_xy(np.array(cell)) for cell in path[:-1]]
        self.targets = [*centres, goal.copy()]

    def act(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The action float32 ``[2]`` for a flat observation ``[8]`` (:func:`bench.envs.flat`)."""
        place, speed = observation[4:6], observation[6:8]
        if len(self.targets) > 1 and np.linalg.norm(self.targets[0] - place) < _NEAR:
            self.targets.pop(0)
        action = _GAIN * (self.targets[0] - place) - _DAMPING * speed
        action = action + self.noise * rng.standard_normal(2)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def waypoint_play(env_id: str, rows: int, seed: int) -> dict[str, np.ndarray]:
    """Columns of :class:`Replay`, ``[rows, ...]``, of one walk from goal to goal.

    As in Minari's sets an episode is the way to one goal: it ends, truncated, where the goal is
    reached (or after the environment's own limit of steps, where the walk starts anew), and the
    next one begins there with another goal.

    Raises:
        ConfigError: when the environment is no point maze.
    """
    if not env_id.startswith("PointMaze"):
        raise ConfigError(f"{env_id}: waypoints are for PointMaze environments only")
    limit = make_env(env_id).spec.max_episode_steps
    env = make_env(env_id, _FOREVER, continuing_task=True, reset_target=True)
    seen, walk = Replay(rows, problem_of(env)), 0
    while seen.size < rows:
        start = stream_seed(seed, _STREAM, walk)
        _walk(env, np.random.default_rng(start), start % 2**31, limit, rows, seen)
        walk += 1
    return seen.arrays()


def _walk(
    env: Any, rng: np.random.Generator, start: int, limit: int, rows: int, seen: Replay
) -> None:
    """From goal to goal until there are enough rows, or a goal is missed."""
    inside, steps, reached = env.unwrapped, 0, True
    controller = Controller(inside.maze)
    observation, _ = env.reset(seed=start)
    while seen.size < rows and steps < limit:
        if reached:
            controller.plan(observation[4:6], inside.goal)
            observation[2:4], steps = inside.goal, 0
        action = controller.act(observation, rng)
        following, reward, _, _, info = env.step(action)
        reached, steps = bool(info["success"]), steps + 1
        seen.add(
            observation=observation,
            action=action,
            reward=reward,
            terminated=False,
            truncated=reached or steps == limit,
            next_observation=following,
        )
        observation = following
