"""Training in an environment, keeping everything that was seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from bench.engine.sampling import Sampler
from bench.engine.trace import trace_policy
from bench.engine.trainer import Trainer, stream_seed
from bench.errors import ConfigError
from bench.evaluate import Evaluator, make_env
from bench.online.replay import Replay, problem_of, take_step, uniform_action
from bench.policies import MarkovPolicy
from bench.recipe import Explore, Problem, Recipe
from bench.store import atomic_write, load_checkpoint, save_checkpoint
from rlobj.specs import Categorical

EXPLORATION_STREAM = 3


def explorer(recipe: Recipe, hp: Any, problem: Problem) -> Explore:
    """How the recipe acts while it collects.

    Raises:
        ConfigError: when it does not, or takes other actions.
    """
    if recipe.explore is None:
        raise ConfigError(f"{recipe.name} cannot train in an environment: choose another")
    if getattr(hp, "n_step", 1) != 1:
        raise ConfigError(f"n_step={hp.n_step}: is for data on disk; leave it out online")
    if recipe.discrete != isinstance(problem.space, Categorical):
        kinds = ("continuous", "discrete")
        raise ConfigError(
            f"{recipe.name} needs {kinds[recipe.discrete]} actions, the environment's are "
            f"{kinds[not recipe.discrete]}: choose another algorithm or environment"
        )
    return recipe.explore(hp, problem)


@dataclass
class Training:
    """One seed training online in one environment; what is left open is how it acts and updates.

    Args:
        recipe, hp: an algorithm that can explore and its hyper-parameters.
        folder: checkpoints, policy snapshots and the learning curve go here.
        steps: environment steps.
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
        self.explore = self._explorer()
        self.replay = Replay(self.steps, self.problem, getattr(self.hp, "batch_size", 1))
        self.trainer = Trainer(
            lambda: self.recipe.build(self.hp, self.problem),
            [self.seed],
            self._sampler(),
            total_steps=self.steps,
        )
        loss, tensors = self.trainer.agent.loss, self.trainer.tensors
        probe = self._observed(np.zeros(self.problem.observation), np.random.default_rng(0), 0)
        self._act = trace_policy(self.explore.act, loss, tensors, probe)
        self.evaluator = Evaluator(self.env_id, [self.seed], 10)
        self.policy = MarkovPolicy(self.trainer.agent, tensors, self.problem, 10)
        self.episode = 0
        self.curve: list[list[float]] = []  # (step, mean return, sd)
        found = load_checkpoint(self.folder)
        if found is not None:
            self._restore(*found)

    @property
    def program(self) -> str:
        """The module whose imports are the code that trains, besides the recipe's."""
        return "bench.online.collect"

    def _explorer(self) -> Explore:
        raise NotImplementedError

    def _sampler(self) -> Sampler:
        """What updates train on."""
        raise NotImplementedError

    def _advance(self) -> None:
        """Act, and update; stop where training can be saved."""
        raise NotImplementedError

    def _more(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts that a checkpoint needs besides replay, trainer, episode and curve."""
        return {}, {}

    def _restore(self, step: int, tensors: dict[str, Tensor], meta: Mapping[str, Any]) -> None:
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
        also, facts = self._more()
        save_checkpoint(self.folder, self.replay.size, tensors | also, meta | facts)

    def _observed(self, observation: np.ndarray, rng: np.random.Generator, step: int) -> TensorDict:
        drawn = {"observation": observation, "noise": self.explore.draw(rng, step)}
        tensors = {k: torch.as_tensor(v, dtype=torch.float32) for k, v in drawn.items()}
        return TensorDict({k: v.reshape(1, 1, -1) for k, v in tensors.items()}, [1, 1])

    def sample_action(
        self, observation: np.ndarray, rng: np.random.Generator, step: int
    ) -> np.ndarray | int:
        """What the current policy does at an environment step, its noise drawn from ``rng``."""
        return self.executed(self._act(self._observed(observation, rng, step)).reshape(-1).numpy())

    def executed(self, action: np.ndarray) -> np.ndarray | int:
        """What the environment gets for an action ``[a]`` of the policy."""
        return int(action[0]) if isinstance(self.problem.space, Categorical) else action

    def _snapshot(self, step: int) -> None:
        rollouts = self.evaluator.run(self.policy, step)
        self.curve.append([step, float(rollouts.returns.mean()), float(rollouts.returns.std())])
        acting = {k: self.trainer.tensors[k][0] for k in self._act.reads}
        save_checkpoint(self.folder / "snapshots" / str(step), step, acting, {})
        lines = [",".join(map(str, row)) for row in self.curve]
        atomic_write(self.folder / "curve.csv", "\n".join(["step,return,sd", *lines]) + "\n")

    def load_snapshot(self, step: int) -> None:
        """Act as after ``step`` environment steps; training cannot go on from there.

        Raises:
            ConfigError: when no snapshot was taken at that step.
        """
        found = load_checkpoint(self.folder / "snapshots" / str(step))
        if found is None:
            raise ConfigError(
                f"snapshot {step}: the training run in {self.folder} keeps one every "
                f"{self.interval} steps"
            )
        for name, value in found[1].items():
            self.trainer.tensors[name][0].copy_(value)

    def run(self, report: Callable[[int, list], None] | None = None, every: int = 25_000) -> None:
        """Train to the last step, saving at the first chance after each ``every`` steps."""
        due = self.replay.size + every
        while self.replay.size < self.steps:
            self._advance()
            if self.replay.size >= due or self.replay.size >= self.steps:
                self._save()
                due = self.replay.size + every
            if report is not None:
                report(self.replay.size, self.curve)


@dataclass
class Collection(Training):
    """Off-policy: an update per step after ``hp.start_steps``, on everything seen so far. It can be
    resumed at episode ends."""

    def _explorer(self) -> Explore:
        return explorer(self.recipe, self.hp, self.problem)

    def _sampler(self) -> Sampler:
        return self.replay

    def _action(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray | int:
        if self.replay.size >= self.hp.start_steps:
            return self.sample_action(observation, rng, self.replay.size)
        return uniform_action(self.problem, rng)

    def _advance(self) -> None:
        """One episode."""
        start = stream_seed(self.seed, EXPLORATION_STREAM, self.episode)
        rng = np.random.default_rng(start)
        observation, _ = self.env.reset(seed=start % 2**31)
        ended = False
        while not ended:  # to the end even past the last step, so that longer runs start alike
            action = self._action(observation, rng)
            row = take_step(self.env, observation, action)
            self.replay.add(**row)
            observation, ended = row["next_observation"], row["terminated"] or row["truncated"]
            if self.replay.size > self.hp.start_steps:
                self.trainer.update()
            if self.replay.size % self.interval == 0:
                self._snapshot(self.replay.size)
        self.episode += 1
