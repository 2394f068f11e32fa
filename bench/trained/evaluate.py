"""``bench evaluate``: more episodes of a trained policy, in its own environment or another one."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from torch import Tensor

from bench.errors import ConfigError
from bench.evaluate import MOST_EPISODES, Evaluator, Rollouts, make_env
from bench.provenance import code_fingerprint, git_commit, versions
from bench.recipe import Problem
from bench.report.stats import mean, sd, t_interval
from bench.trained.run import Trained
from rlobj.specs import Categorical

Told = Callable[[int, int], None]  # (episodes that are over, steps of those under way)


@dataclass(frozen=True)
class How:
    """What an evaluation is of: ``episodes`` in an environment with start states of ``seed``."""

    env_id: str
    horizon: int | None
    seed: int
    episodes: int


def how_of(
    run: Trained,
    *,
    episodes: int | None = None,
    env_id: str | None = None,
    horizon: int | None = None,
    seed: int | None = None,
) -> How:
    """What was asked for, and the run's own of the rest; its horizon goes with its environment.

    Raises:
        ConfigError: when there is no environment, or the policy does not fit it.
    """
    own, config = run.config.get("env_id"), run.config
    chosen = env_id or own
    if chosen is None:
        raise ConfigError(f"{run.path}: {config['dataset']} is not scored here; choose an --env-id")
    if horizon is None and chosen == own:
        horizon = config.get("horizon")
    episodes = episodes or int(config["protocol"]["eval_episodes"])
    if episodes > MOST_EPISODES:
        raise ConfigError(f"--episodes {episodes}: at most {MOST_EPISODES}; use --seed for more")
    how = How(chosen, horizon, config["seed"] if seed is None else seed, episodes)
    _check_fit(run, how)
    return how


def _check_fit(run: Trained, how: How) -> None:
    env = make_env(how.env_id, how.horizon)
    try:
        theirs = _sizes(env)
    finally:
        env.close()
    ours = _sizes_of(run.problem)
    if theirs != ours:
        raise ConfigError(
            f"--env-id {how.env_id}: has {theirs[0]} numbers in an observation and {theirs[1]}; "
            f"{run.name} was trained for {ours[0]} and {ours[1]}"
        )


def _sizes(env: Any) -> tuple[int, str]:
    space = env.action_space
    actions = f"{space.n} actions" if hasattr(space, "n") else f"actions of {space.shape[0]}"
    return math.prod(env.observation_space.shape), actions


def _sizes_of(problem: Problem) -> tuple[int, str]:
    if isinstance(problem.space, Categorical):
        return problem.observation, f"{problem.n_actions} actions"
    return problem.observation, f"actions of {problem.action.shape[0]}"


class Chosen:
    """One seed of a policy that acts for a group: computed with the rest of the group and with as
    many episodes as in training, so that its bits are those of training's evaluations."""

    def __init__(self, run: Trained, episodes: int, told: Callable[[int], None]) -> None:
        self.policy = run.policy(episodes)
        self.shape = (len(run.config["group"]), episodes)
        self.position, self.told = run.position, told

    def reset(self, seeds: int, episodes: int) -> None:
        self.policy.reset(*self.shape)
        self.steps = 0

    def _whole(self, part: Tensor) -> Tensor:
        whole = part.new_zeros(*self.shape, *part.shape[2:])
        whole[self.position, : part.shape[1]] = part[0]
        return whole

    def act(self, observation: Tensor) -> Tensor:
        actions = self.policy.act(self._whole(observation))
        self.steps += 1
        self.told(self.steps)
        return actions[self.position, : observation.shape[1]].unsqueeze(0)

    def observe(self, reward: Tensor) -> None:
        self.policy.observe(self._whole(reward))


def roll_out(run: Trained, how: How, told: Told = lambda over, steps: None) -> Rollouts:
    """Returns and lengths ``[1, n_episodes]``. Episodes go by as many at a time as in training:
    the first ones are those of training's evaluation at that step, if the seed is the run's."""
    share = int(run.config["protocol"]["eval_episodes"])
    over = 0
    policy = Chosen(run, share, lambda steps: told(over, steps))
    found: list[Rollouts] = []
    with ExitStack() as stack:
        evaluator: Evaluator | None = None
        while over < how.episodes:
            count = min(share, how.episodes - over)
            if evaluator is None or evaluator.episodes != count:  # the last ones may be fewer
                evaluator = Evaluator(how.env_id, [how.seed], count, how.horizon)
                stack.callback(evaluator.close)
            found.append(evaluator.run(policy, run.step, first=over))
            over += count
    told(over, 0)
    return Rollouts(
        np.concatenate([part.returns for part in found], 1),
        np.concatenate([part.lengths for part in found], 1),
    )


def record(run: Trained, how: How, found: Rollouts) -> dict[str, Any]:
    """What is written down of an evaluation: plain JSON."""
    returns, lengths = found.returns[0].tolist(), found.lengths[0].tolist()
    config = run.config
    own = how.env_id == config.get("env_id") and how.horizon == config.get("horizon")
    scores = [run.normalized(value) for value in returns] if own else []
    targets = getattr(run.hyper, "target_returns", None)
    return {
        "run": run.id,
        "checkpoint": {"which": run.which, "step": run.step},
        "env_id": how.env_id,
        "horizon": how.horizon,
        "seed": how.seed,
        "episodes": how.episodes,
        "target_return": targets[0] if targets else None,
        "return": _summary(returns),
        "normalized": _summary(scores) if scores and None not in scores else None,
        "reference": config.get("reference") if own else None,
        "length": {"mean": mean(lengths), "min": min(lengths), "max": max(lengths)},
        "as_recorded": _as_recorded(run, how, found),
        "returns": returns,
        "lengths": lengths,
        "versions": versions(how.env_id),
        "git_commit": git_commit(),
        "code": code_fingerprint(run.recipe.name),
        "trained_with": {k: config.get(k) for k in ("versions", "git_commit", "code", "device")},
        "evaluated": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _summary(values: list[Any]) -> dict[str, Any]:
    """Over episodes; the interval is Student's, of the mean."""
    found = {"mean": mean(values), "sd": sd(values), "interval": list(t_interval(values))}
    return found if len(values) > 1 else {"mean": mean(values), "sd": None, "interval": None}


def _as_recorded(run: Trained, how: How, found: Rollouts) -> dict[str, Any] | None:
    """Whether the episodes that training evaluated came out as it recorded them; None where others
    were asked for."""
    config = run.config
    own = (config.get("env_id"), config.get("horizon"), config["seed"])
    if run.recorded is None or (how.env_id, how.horizon, how.seed) != own:
        return None
    count = min(how.episodes, run.recorded.returns.shape[1])
    off = np.abs(found.returns[0, :count] - run.recorded.returns[0, :count]).max()
    return {"episodes": count, "largest_difference": float(off)}


def file_name(record: dict[str, Any]) -> str:
    """'Hopper-v5-last-2000-seed-0-100.json', and what else was asked for: the same evaluation has
    the same name."""
    checkpoint, horizon, target = (record[k] for k in ("checkpoint", "horizon", "target_return"))
    parts = [record["env_id"].replace("/", "-"), checkpoint["which"], str(checkpoint["step"])]
    parts += [f"horizon-{horizon}"] if horizon is not None else []
    parts += [f"target-{target:g}"] if target is not None else []
    return "-".join([*parts, f"seed-{record['seed']}", f"{record['episodes']}.json"])
