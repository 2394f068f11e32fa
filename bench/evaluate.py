"""Rollouts: all seeds and episodes of an evaluation together, one policy call per time step."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bench import envs
from bench.engine.trainer import stream_seed
from bench.errors import ConfigError

_EVALUATION_STREAM = 2
MOST_EPISODES = 10_000  # of an evaluation, with start states of their own


class Policy(Protocol):
    """Acts for every seed and episode at once."""

    def reset(self, seeds: int, episodes: int) -> None: ...

    def act(self, observation: Tensor) -> Tensor:
        """``[n_seeds, n_episodes, obs]`` to actions ``[n_seeds, n_episodes, act]``."""
        ...

    def observe(self, reward: Tensor) -> None:
        """Rewards ``[n_seeds, n_episodes]`` of the actions just taken."""
        ...


@dataclass(frozen=True)
class Rollouts:
    """Raw episode returns and lengths, ``[n_seeds, n_episodes]``."""

    returns: np.ndarray
    lengths: np.ndarray


def make_env(env_id: str, horizon: int | None = None, **options: Any) -> Any:
    """A gymnasium environment; ``horizon`` replaces its own episode limit. Dictionaries of
    observations come as one vector (:func:`bench.envs.flat`).

    Raises:
        ConfigError: when gymnasium does not know or cannot make it.
    """
    import gymnasium as gym

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # v4 tasks announce their successors on every make
        try:
            limit = {} if horizon is None else {"max_episode_steps": horizon}
            envs.register(env_id)
            return envs.flat(gym.make(env_id, disable_env_checker=True, **limit, **options))
        except Exception as error:  # gymnasium raises many types here
            draws = os.environ.get("MUJOCO_GL")  # a way to draw without its library breaks MuJoCo
            own = isinstance(error, gym.error.Error) or not draws
            hint = "" if own else f" (MUJOCO_GL={draws}: is its library installed?)"
            raise ConfigError(f"environment {env_id!r} cannot be made: {error}{hint}") from None


class Evaluator:
    """Environments for ``n_seeds * n_episodes`` simultaneous episodes.

    Start states follow from (run seed, training step, episode): fixed, and different between
    seeds.
    """

    def __init__(
        self,
        env_id: str,
        seeds: Sequence[int],
        episodes: int,
        horizon: int | None = None,
        make: Callable[[str, int | None], Any] = make_env,
    ) -> None:
        self.seeds, self.episodes = tuple(seeds), episodes
        self.envs = [make(env_id, horizon) for _ in range(len(self.seeds) * episodes)]
        self._discrete = hasattr(self.envs[0].action_space, "n")

    def run(self, policy: Policy, step: int, first: int = 0) -> Rollouts:
        """Roll the policy out once per seed and episode, as evaluation number ``step``, whose
        episodes are counted from ``first``."""
        shape = (len(self.seeds), self.episodes)
        policy.reset(*shape)
        observation = np.stack([env.reset(seed=s)[0] for env, s in self._starts(step, first)])
        returns, lengths = np.zeros(len(self.envs)), np.zeros(len(self.envs), dtype=np.int64)
        alive = np.ones(len(self.envs), dtype=bool)
        while alive.any():
            tensor = torch.as_tensor(observation, dtype=torch.float32)
            actions = policy.act(tensor.reshape(*shape, -1)).reshape(len(self.envs), -1)
            rewards = self._step(actions.cpu().numpy(), observation, alive)
            returns += rewards
            lengths += alive
            policy.observe(torch.as_tensor(rewards, dtype=torch.float32).reshape(shape))
            alive = self._alive
        return Rollouts(returns.reshape(shape), lengths.reshape(shape))

    def _starts(self, step: int, first: int) -> list[tuple[Any, int]]:
        numbers = range(first, first + self.episodes)
        keys = [(s, step * MOST_EPISODES + e) for s in self.seeds for e in numbers]
        seeds = [stream_seed(s, _EVALUATION_STREAM, k) % 2**31 for s, k in keys]
        return list(zip(self.envs, seeds, strict=True))

    def _step(self, actions: np.ndarray, observation: np.ndarray, alive: np.ndarray) -> np.ndarray:
        rewards = np.zeros(len(self.envs))
        self._alive = alive.copy()
        for i in np.flatnonzero(alive):
            env = self.envs[i]
            action = int(actions[i, 0]) if self._discrete else self._bounded(env, actions[i])
            observation[i], rewards[i], terminated, truncated, _ = env.step(action)
            self._alive[i] = not (terminated or truncated)
        return rewards

    @staticmethod
    def _bounded(env: Any, action: np.ndarray) -> np.ndarray:
        return np.clip(action, env.action_space.low, env.action_space.high)

    def close(self) -> None:
        for env in self.envs:
            env.close()
