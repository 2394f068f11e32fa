"""Training in an environment, keeping everything that was seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor

from bench.engine.trace import trace_policy
from bench.engine.trainer import Trainer, stream_seed
from bench.evaluate import Evaluator, make_env
from bench.policies import MarkovPolicy
from bench.recipe import Problem
from bench.store import atomic_write, load_checkpoint, save_checkpoint
from rlobj import LossModule, noise
from rlobj.specs import Bounded

_EXPLORATION_STREAM = 3
_COLUMNS = ("observation", "action", "reward", "terminated", "truncated")
_BATCH: dict[NestedKey, str] = {  # entries of a batch by column
    "observation": "observation",
    "action": "action",
    ("next", "observation"): "next_observation",
    ("next", "reward"): "reward",
    ("next", "terminated"): "terminated",
    ("next", "done"): "done",
}


class Replay:
    """Every transition seen, in order; batches are uniform over those so far."""

    @property
    def keys(self) -> Sequence[NestedKey]:
        return tuple(_BATCH)

    def __init__(self, capacity: int, observation: int, action: int, batch_size: int) -> None:
        self.batch_size, self.size = batch_size, 0
        wide = {"observation": observation, "action": action, "next_observation": observation}
        self.data = {k: torch.zeros(capacity, w) for k, w in wide.items()}
        for k in ("reward", "terminated", "truncated"):
            self.data[k] = torch.zeros(capacity, 1)

    def make_room(self, rows: int) -> None:
        """Grow to at least ``rows``, keeping what is there."""
        missing = rows - len(self.data["reward"])
        if missing > 0:
            more = max(missing, 1000)
            self.data = {
                k: torch.cat([v, torch.zeros(more, v.shape[1])]) for k, v in self.data.items()
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


def problem_of(env: Any) -> Problem:
    """Sizes and bounds of a continuous-control environment."""
    box = env.action_space
    spec = Bounded(torch.as_tensor(box.low), torch.as_tensor(box.high))
    return Problem(int(np.prod(env.observation_space.shape)), spec)


def explore(loss: LossModule, observed: TensorDict) -> Tensor:
    """A sampled action; its noise comes in as data under ``"noise"``."""
    with noise.using(noise.Tape([observed["noise"]])):
        return loss.distribution(observed).rsample()


@dataclass
class Collection:
    """One seed training online in one environment, resumable at episode ends.

    Args:
        recipe, hp: an online recipe (SAC) and its hyper-parameters.
        folder: checkpoints, policy snapshots and the learning curve go here.
        steps: environment steps; one update per step after ``hp.start_steps``.
        interval: steps between snapshots (each evaluated on ten episodes).
    """

    recipe: Any
    hp: Any
    env_id: str
    seed: int
    steps: int
    folder: Path
    interval: int = 5_000

    def __post_init__(self) -> None:
        self.env = make_env(self.env_id)
        self.problem = problem_of(self.env)
        width = self.problem.action.shape[0]
        self.replay = Replay(self.steps, self.problem.observation, width, self.hp.batch_size)
        self.trainer = Trainer(
            lambda: self.recipe.build(self.hp, self.problem),
            [self.seed],
            self.replay,
            total_steps=self.steps,
        )
        zeros = {
            "observation": torch.zeros(1, 1, self.problem.observation),
            "noise": torch.zeros(1, 1, width),
        }
        loss = self.trainer.agent.loss
        probe = TensorDict(zeros, [1, 1])
        self._explore = trace_policy(explore, loss, self.trainer.tensors, probe)
        self.evaluator = Evaluator(self.env_id, [self.seed], 10)
        self.policy = MarkovPolicy(self.trainer.agent, self.trainer.tensors, self.problem, 10)
        self.episode = 0
        self.curve: list[list[float]] = []  # (step, mean return, sd)
        self._load()

    def _load(self) -> None:
        found = load_checkpoint(self.folder)
        if found is None:
            return
        step, tensors, meta = found
        self.replay.make_room(step)  # a longer run than asked for may exist
        self.replay.size = step
        for key, column in self.replay.data.items():
            column[:step] = tensors.pop(f"replay.{key}")
        self.trainer.load_state(int(meta["updates"]), tensors)
        self.episode, self.curve = int(meta["episode"]), list(meta["curve"])

    def _save(self) -> None:
        tensors = {f"replay.{k}": v[: self.replay.size] for k, v in self.replay.data.items()}
        tensors.update(self.trainer.state())
        meta = {"updates": self.trainer.step, "episode": self.episode, "curve": self.curve}
        save_checkpoint(self.folder, self.replay.size, tensors, meta)

    def sample_action(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An action of the current policy, its noise drawn from ``rng``."""
        width = self.problem.action.shape[0]
        seen = torch.as_tensor(observation, dtype=torch.float32)
        eps = torch.as_tensor(rng.standard_normal(width), dtype=torch.float32)
        inputs = {"observation": seen.reshape(1, 1, -1), "noise": eps.reshape(1, 1, -1)}
        return self._explore(TensorDict(inputs, [1, 1])).reshape(-1).numpy()

    def _action(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.replay.size >= self.hp.start_steps:
            return self.sample_action(observation, rng)
        spec = self.problem.action
        u = torch.as_tensor(rng.random(spec.shape[0]), dtype=torch.float32)
        return (spec.low + (spec.high - spec.low) * u).numpy()

    def _run_episode(self) -> None:
        start = stream_seed(self.seed, _EXPLORATION_STREAM, self.episode)
        rng = np.random.default_rng(start)
        observation, _ = self.env.reset(seed=start % 2**31)
        ended = False
        while not ended:  # to the end even past the last step, so that longer runs start alike
            action = self._action(observation, rng)
            following, reward, terminated, truncated, _ = self.env.step(action)
            self.replay.add(
                observation=observation,
                action=action,
                reward=reward,
                terminated=terminated,
                truncated=truncated,
                next_observation=following,
            )
            observation, ended = following, terminated or truncated
            if self.replay.size > self.hp.start_steps:
                self.trainer.update()
            if self.replay.size % self.interval == 0:
                self._snapshot()
        self.episode += 1

    def _snapshot(self) -> None:
        step = self.replay.size
        rollouts = self.evaluator.run(self.policy, step)
        self.curve.append([step, float(rollouts.returns.mean()), float(rollouts.returns.std())])
        prefix = "actor_network_params."
        actor = {k: v[0] for k, v in self.trainer.tensors.items() if k.startswith(prefix)}
        save_checkpoint(self.folder / "snapshots" / str(step), step, actor, {})
        lines = [",".join(map(str, row)) for row in self.curve]
        atomic_write(self.folder / "curve.csv", "\n".join(["step,return,sd", *lines]) + "\n")

    def run(self, report: Callable[[int, list], None] | None = None, every: int = 25_000) -> None:
        """Train to the last step, saving at the first episode end after each ``every`` steps."""
        due = self.replay.size + every
        while self.replay.size < self.steps:
            self._run_episode()
            if self.replay.size >= due or self.replay.size >= self.steps:
                self._save()
                due = self.replay.size + every
            if report is not None:
                report(self.replay.size, self.curve)
