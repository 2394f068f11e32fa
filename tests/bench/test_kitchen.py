"""Minari's kitchen sets are scored in the environment that recorded them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer

from bench.data import DataWarning, cards, load
from bench.evaluate import Evaluator, make_env

pytest.importorskip("gymnasium_robotics", reason="the extra [robotics] is not installed")
LEVELS = ("complete", "partial", "mixed")
SLIDE = {"microwave", "kettle", "light switch", "slide cabinet"}
TASKS = dict(
    zip(LEVELS, (SLIDE, SLIDE, SLIDE - {"slide cabinet"} | {"bottom burner"}), strict=True)
)


@pytest.mark.parametrize("level", LEVELS)
def test_finished_subtasks_go_on_paying(level: str) -> None:
    """Catches: the default environment, which asks for seven subtasks, pays each once and ends when
    all are done; another list of subtasks; another limit than the data's."""
    card = cards()[f"D4RL/kitchen/{level}-v2"]
    env = make_env(card.env_id)
    assert env.spec.max_episode_steps == card.horizon and not card.not_evaluated
    inside = env.unwrapped
    assert set(inside.goal) == TASKS[level] and not inside.terminate_on_tasks_completed
    env.reset(seed=0)
    done = {task: inside.goal[task] for task in inside.goal}
    inside.compute_reward = _paid_as_if(inside.compute_reward, done)
    for _ in range(2):
        _, reward, terminated, _, info = env.step(np.zeros(9))
        assert reward == 4.0 and not terminated and len(info["tasks_to_complete"]) == 4


def _paid_as_if(compute: Any, achieved: dict[str, np.ndarray]) -> Any:
    return lambda _, goal, info: compute(achieved, goal, info)


class Fixed:
    """Repeats recorded actions ``[steps, 9]``; keeps what it saw."""

    def __init__(self, actions: torch.Tensor) -> None:
        self.actions, self.seen = actions, list[torch.Tensor]()

    def reset(self, seeds: int, episodes: int) -> None: ...

    def observe(self, reward: torch.Tensor) -> None: ...

    def act(self, observation: torch.Tensor) -> torch.Tensor:
        self.seen.append(observation.flatten())
        return self.actions[len(self.seen) - 1].expand(1, 1, 9)


def test_an_episode_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set in Minari's layout and dictionaries, loaded by its id, and an evaluation in what its
    card names. Catches: an environment that the loader refuses, and one that shows its numbers in
    another order or number than the data has them."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    record("D4RL/kitchen/complete-v2", 40)
    with pytest.warns(DataWarning) as caught:
        dataset = load("D4RL/kitchen/complete-v2")
    said = " ".join(str(warning.message) for warning in caught)
    assert "has 40 where the card" in said and "options" not in said and "evaluated" not in said
    assert dataset.env_id == "bench/FrankaKitchen-complete-v1" and dataset.unit == "return"
    held = dataset.transitions["observation"]
    assert held.shape == (40, 59 + 2 * 11)
    evaluator = Evaluator(dataset.env_id, [0], 1, dataset.horizon)
    actions = torch.cat([dataset.transitions["action"], torch.zeros(240, 9)])
    policies = Fixed(actions), Fixed(actions)
    first, again = (evaluator.run(policy, 0) for policy in policies)
    assert first.lengths.tolist() == [[280]] and first.returns == again.returns
    shown = torch.stack(policies[0].seen[:40])
    assert torch.equal(shown, torch.stack(policies[1].seen[:40]))
    goals = slice(11, 22)  # between the achieved ones and the observation; they never change
    assert (held[:, goals].std(0) < 1e-6).all() and held[0, goals].unique().numel() > 6
    assert torch.allclose(shown[:, goals], held[:, goals])
    assert torch.allclose(shown[0], held[0], atol=0.02)  # the start, up to its noise


def record(name: str, steps: int) -> None:
    """Uniform actions, kept as Minari keeps them: dictionaries, and the environment's options."""
    env = make_env("bench/FrankaKitchen-complete-v1").env  # below what flattens its observations
    rng, (observation, _) = np.random.default_rng(0), env.reset(seed=3)
    seen, actions, rewards = [observation], [], []
    for _ in range(steps):
        actions.append(2 * rng.random(9) - 1)
        observation, reward, *_ = env.step(actions[-1])
        seen.append(observation)
        rewards.append(reward)
    episode = EpisodeBuffer(
        id=0,
        observations=columns(seen),
        actions=np.stack(actions),
        rewards=rewards,
        terminations=[False] * steps,
        truncations=[False] * (steps - 1) + [True],
    )
    facts = env.spec.kwargs | {"max_episode_steps": env.spec.max_episode_steps}
    spec = gymnasium.make("FrankaKitchen-v1", **facts).spec
    with pytest.warns(UserWarning):  # Minari asks for an author
        minari.create_dataset_from_buffers(name, [episode], env=spec)


def columns(rows: list[Any]) -> Any:
    """A dictionary of arrays from a list of dictionaries."""
    if not isinstance(rows[0], dict):
        return np.stack(rows)
    return {key: columns([row[key] for row in rows]) for key in rows[0]}
