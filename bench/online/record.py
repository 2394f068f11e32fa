"""Episodes of a fixed way of acting, as the columns of a dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.engine.trainer import stream_seed
from bench.errors import ConfigError
from bench.evaluate import make_env
from bench.online.collect import Training
from bench.online.replay import Replay, problem_of, take_step
from rlobj.specs import Categorical

_ROLLOUT_STREAM, _RANDOM_STREAM = 4, 5

Act = Callable[[np.ndarray, np.random.Generator], Any]  # observation, generator -> action


def random_play(env_id: str, rows: int, seed: int) -> dict[str, np.ndarray]:
    """Episodes of uniformly random actions: arrays ``[rows, ...]`` by column of :class:`Replay`."""
    env = make_env(env_id)
    problem = problem_of(env)

    def number(observation: np.ndarray, rng: np.random.Generator) -> int:
        return int(rng.integers(problem.n_actions))

    def vector(observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        low, high = env.action_space.low, env.action_space.high
        return (low + (high - low) * rng.random(low.shape)).astype(np.float32)

    discrete = isinstance(problem.space, Categorical)
    if not discrete and not np.isfinite([env.action_space.low, env.action_space.high]).all():
        raise ConfigError(f"{env_id}: its actions are unbounded: no uniform ones can be drawn")
    return episodes(env, rows, seed, _RANDOM_STREAM, number if discrete else vector)


def snapshot_play(run: Training, snapshot: int, rows: int) -> dict[str, np.ndarray]:
    """Episodes of the policy that training had after ``snapshot`` steps, exploring as it did then;
    columns as of :func:`random_play`."""
    run.load_snapshot(snapshot)

    def act(observation: np.ndarray, rng: np.random.Generator) -> Any:
        return run.sample_action(observation, rng, snapshot)

    return episodes(run.env, rows, run.seed, _ROLLOUT_STREAM, act)


def episodes(env: Any, rows: int, seed: int, stream: int, act: Act) -> dict[str, np.ndarray]:
    """Episode after episode until there are ``rows`` transitions; the last one may be cut.

    An episode depends on (seed, stream, its number) alone.
    """
    seen = Replay(rows, problem_of(env))
    episode = 0
    while seen.size < rows:
        start = stream_seed(seed, stream, episode)
        rng = np.random.default_rng(start)
        observation, _ = env.reset(seed=start % 2**31)
        ended = False
        while not ended and seen.size < rows:
            action = act(observation, rng)
            row = take_step(env, observation, action)
            seen.add(**row)
            observation, ended = row["next_observation"], row["terminated"] or row["truncated"]
        episode += 1
    return seen.arrays()
