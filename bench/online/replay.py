"""Every transition seen in an environment, and what kind of environment that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey
from torch import Tensor

from bench.errors import ConfigError
from bench.recipe import Problem
from rlobj.specs import Bounded, Categorical

_BATCH: dict[NestedKey, str] = {  # entries of a batch by column
    "observation": "observation",
    "action": "action",
    ("next", "observation"): "next_observation",
    ("next", "reward"): "reward",
    ("next", "terminated"): "terminated",
    ("next", "done"): "done",
}


class Replay:
    """Every transition seen, in order; batches are uniform over those so far.

    Args:
        capacity: rows to make room for at once; more are made as they come.
        problem: numbered actions are kept as floats ``[n]``, others as ``[n, a]``.
    """

    @property
    def keys(self) -> Sequence[NestedKey]:
        return tuple(_BATCH)

    def __init__(self, capacity: int, problem: Problem, batch_size: int = 1) -> None:
        self.batch_size, self.size = batch_size, 0
        seen: tuple[int, ...] = (problem.observation,)
        wide = {"observation": seen, "action": problem.space.shape, "next_observation": seen}
        wide |= dict.fromkeys(("reward", "terminated", "truncated"), (1,))
        self.data = {k: torch.zeros(capacity, *shape) for k, shape in wide.items()}

    def make_room(self, rows: int) -> None:
        """Grow to at least ``rows``, keeping what is there."""
        missing = rows - len(self.data["reward"])
        if missing > 0:
            more = max(missing, 1000)
            self.data = {
                k: torch.cat([v, torch.zeros(more, *v.shape[1:])]) for k, v in self.data.items()
            }

    def add(self, **row: Any) -> None:
        self.make_room(self.size + 1)
        for key, value in row.items():
            self.data[key][self.size] = torch.as_tensor(value, dtype=torch.float32)
        self.size += 1

    def nbytes(self, indices: int) -> int:
        return sum(column.nbytes for column in self.data.values())

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        return torch.rand((steps, self.batch_size), generator=generator, dtype=torch.float64)

    def leaves(self, index: Tensor) -> list[Tensor]:
        rows = (index * max(self.size, 1)).long()
        part = {k: v[rows] for k, v in self.data.items()}
        part["done"] = torch.maximum(part["terminated"], part["truncated"])
        return [part[column] for column in _BATCH.values()]

    def arrays(self) -> dict[str, np.ndarray]:
        """What was seen so far as numpy arrays ``[size, ...]``."""
        return {k: v[: self.size].numpy() for k, v in self.data.items()}


def take_step(env: Any, observation: np.ndarray, action: np.ndarray | int) -> dict[str, Any]:
    """An action where an observation was shown, as a row of :class:`Replay`."""
    following, reward, terminated, truncated, _ = env.step(action)
    return {
        "observation": observation,
        "action": action,
        "reward": reward,
        "terminated": terminated,
        "truncated": truncated,
        "next_observation": following,
    }


def problem_of(env: Any) -> Problem:
    """Sizes and action space of an environment.

    Raises:
        ConfigError: when its observations are no vector, or its actions neither a box of vectors
            nor numbered from 0.
    """
    seen, actions = env.observation_space, env.action_space
    name = env.spec.id if env.spec else env
    if seen.shape is None or len(seen.shape) != 1:
        raise ConfigError(f"{name}: observations {seen} are no vector: nothing here trains on them")
    width = int(seen.shape[0])
    if hasattr(actions, "n") and getattr(actions, "start", None) == 0:
        return Problem(width, Categorical(int(actions.n)))
    if hasattr(actions, "low") and len(actions.shape) == 1:
        return Problem(width, Bounded(torch.as_tensor(actions.low), torch.as_tensor(actions.high)))
    raise ConfigError(f"{name}: actions {actions} are neither a vector nor numbered from 0")


def uniform_action(problem: Problem, rng: np.random.Generator) -> np.ndarray | int:
    """A uniformly random action."""
    if isinstance(problem.space, Categorical):
        return int(rng.integers(problem.n_actions))
    spec = problem.action
    u = torch.as_tensor(rng.random(spec.shape[0]), dtype=torch.float32)
    return (spec.low + (spec.high - spec.low) * u).numpy()
