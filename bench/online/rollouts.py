"""On-policy training in environments side by side, keeping every finished episode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor

from bench.engine.agent import Agent
from bench.engine.sampling import Sampler
from bench.engine.trace import trace_policy
from bench.engine.trainer import stream_seed
from bench.errors import ConfigError, RunError
from bench.evaluate import make_env
from bench.online.collect import EXPLORATION_STREAM, Training
from bench.online.replay import take_step
from bench.recipe import Explore, Problem, parsed
from rlobj import LossModule
from rlobj.value import GAE

_SHUFFLE_STREAM, _NOISE_STREAM = 7, 8
_LEAST_SD, _LARGEST = 1e-8, 10.0  # that rewards are divided by, and that comes out


@dataclass(frozen=True)
class OnPolicy:
    """An algorithm that learns from what its present policy just did.

    Args:
        name, paper, hyper: as of :class:`bench.recipe.Recipe`. The hyper-parameters have
            ``environments`` side by side, ``horizon`` steps in each of them per rollout,
            ``epochs`` over a rollout in so many ``minibatches``, ``gamma`` and ``lmbda``, and say
            whether to ``scale_rewards``.
        build: the loss finds the entries of :class:`Minibatches`; the policy is the evaluated one.
        explore: ``act`` gives actions of the policy, in the units of the loss.
        judge: log-probability of ``action`` and value of ``observation``, ``[*batch, 2]``.
        executed: what an environment gets for such an action ``[a]``.
        follow: writes into the loss's tensors ``[1, ...]`` what follows from the moments of all
            observations so far: how many, their sum and their sum of squares, float64 ``[3, d]``.
    """

    name: str
    paper: str
    hyper: type
    build: Callable[[Any, Problem], Agent]
    explore: Callable[[Any, Problem], Explore]
    judge: Callable[[LossModule, TensorDict], Tensor]
    executed: Callable[[Problem, np.ndarray], np.ndarray | int]
    follow: Callable[[Any, Mapping[str, Tensor], Tensor], None]

    def hyperparameters(
        self, names: tuple[str, ...], profile: str, settings: Mapping[str, str]
    ) -> Any:
        """Defaults, and what ``--set`` says."""
        return replace(self.hyper(), **parsed(self, settings))


def mean_and_sd(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Of numbers of which there are ``moments``: how many, their sum, their sum of squares."""
    count, total, squares = moments
    mean = total / count
    return mean, (squares / count - mean**2).clamp_min(0).sqrt()


class Minibatches:
    """A rollout of ``rows`` steps; ``chosen`` says which of them the next update sees."""

    keys: Sequence[NestedKey] = (
        "observation", "action", "action_log_prob", "advantage", "value_target",
    )  # fmt: skip

    def __init__(self, rows: int, batch_size: int, problem: Problem) -> None:
        self.batch_size, self.chosen = batch_size, torch.arange(batch_size)
        shapes = ((problem.observation,), problem.space.shape, (), (1,), (1,))
        self.data = [torch.zeros(rows, *shape) for shape in shapes]

    def fill(self, columns: Mapping[str, Tensor]) -> None:
        for held, key in zip(self.data, self.keys, strict=True):
            held.copy_(columns[str(key)].reshape(held.shape))

    def nbytes(self, indices: int) -> int:
        return sum(column.nbytes for column in self.data)

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        return torch.zeros(steps, self.batch_size)

    def leaves(self, index: Tensor) -> list[Tensor]:
        return [column[self.chosen].unsqueeze(0) for column in self.data]


class Walk:
    """One environment, and its present episode so far: rows as :class:`Replay` takes them."""

    def __init__(self, env: Any) -> None:
        self.env, self.number = env, 0
        self.rows: list[dict[str, Any]] = []

    def begin(self, seed: int, number: int) -> None:
        self.number, self.rows = number, []
        start = stream_seed(seed, EXPLORATION_STREAM, number)
        self.observation, _ = self.env.reset(seed=start % 2**31)

    def step(self, action: np.ndarray | int) -> dict[str, Any]:
        row = take_step(self.env, self.observation, action)
        self.rows.append(row)
        self.observation = row["next_observation"]
        return row


@dataclass
class Rollouts(Training):
    """Rollouts of the present policy, each followed by updates on it alone.

    Episodes enter the replay as they end, so that its rows are whole episodes. It can be resumed
    between rollouts: what was under way is played again, action by action. Snapshots are taken at
    the first such point after each ``interval`` steps.
    """

    def __post_init__(self) -> None:
        hp = self.hp
        for name in ("environments", "horizon", "minibatches", "epochs"):
            if getattr(hp, name) < 1:
                raise ConfigError(f"{name}={getattr(hp, name)}: must be at least 1")
        self.length = hp.environments * hp.horizon
        if self.length % hp.minibatches:
            raise ConfigError(
                f"minibatches={hp.minibatches}: must divide the {self.length} steps of a rollout"
            )
        self.rollout = 0
        self.gae = GAE(gamma=hp.gamma, lmbda=hp.lmbda, value_network=None)
        self.walks = [Walk(make_env(self.env_id)) for _ in range(hp.environments)]
        for number, walk in enumerate(self.walks):
            walk.begin(self.seed, number)
        super().__post_init__()
        loss, tensors = self.trainer.agent.loss, self.trainer.tensors
        rng = np.random.default_rng(0)
        self._act_all = trace_policy(self.explore.act, loss, tensors, self._side_by_side(rng))
        observation, action = (column.unsqueeze(0) for column in self.batch.data[:2])
        pairs = TensorDict({"observation": observation, "action": action}, [1, self.length])
        self._judge = trace_policy(self.recipe.judge, loss, tensors, pairs)

    @property
    def program(self) -> str:
        return f"bench.online.agents.{self.recipe.name}"

    def _explorer(self) -> Explore:
        return self.recipe.explore(self.hp, self.problem)

    def _sampler(self) -> Sampler:
        self.moments = torch.zeros(3, self.problem.observation, dtype=torch.float64)
        self.paid = torch.zeros(3, dtype=torch.float64)  # moments of discounted returns
        self.earned = torch.zeros(len(self.walks), dtype=torch.float64)  # in the present episodes
        size = self.length // self.hp.minibatches
        self.batch = Minibatches(self.length, size, self.problem)
        return self.batch

    def executed(self, action: np.ndarray) -> np.ndarray | int:
        return self.recipe.executed(self.problem, action)

    def _side_by_side(self, rng: np.random.Generator) -> TensorDict:
        """What every environment shows, and the noise of its next action."""
        columns = {
            "observation": np.stack([walk.observation for walk in self.walks]),
            "noise": np.stack([self.explore.draw(rng, 0) for _ in self.walks]),
        }
        tensors = {k: torch.as_tensor(v, dtype=torch.float32)[None] for k, v in columns.items()}
        return TensorDict(tensors, [1, len(self.walks)])

    def _advance(self) -> None:
        """A rollout, and the updates on it."""
        steps, before = self._collect(), self.rollout * self.length
        self._learn(steps)
        self.rollout += 1
        due = range(before // self.interval + 1, (before + self.length) // self.interval + 1)
        for number in due:
            self._snapshot(number * self.interval)

    def _collect(self) -> dict[str, Tensor]:
        """Columns ``[environments, horizon, ...]`` of what was seen, done and paid."""
        rng = np.random.default_rng(stream_seed(self.seed, _NOISE_STREAM, self.rollout))
        steps: list[dict[str, Tensor]] = []
        for _ in range(self.hp.horizon):
            seen = self._side_by_side(rng)
            actions = self._act_all(seen)[0].clone()
            rows = [
                walk.step(self.executed(action.reshape(-1).numpy()))
                for walk, action in zip(self.walks, actions, strict=True)
            ]
            step = {"observation": seen["observation"][0], "action": actions}
            for key in ("reward", "terminated", "truncated", "next_observation"):
                values = np.stack([np.asarray(row[key], dtype=np.float32) for row in rows])
                step[key] = torch.as_tensor(values)
            steps.append(step)
            for walk in self.walks:
                self._finish(walk)
        return {key: torch.stack([step[key] for step in steps], 1) for key in steps[0]}

    def _finish(self, walk: Walk) -> None:
        """Keep an episode that ended, and begin the next one."""
        if not (walk.rows[-1]["terminated"] or walk.rows[-1]["truncated"]):
            return
        for row in walk.rows:
            self.replay.add(**row)
        walk.begin(self.seed, self.episode)
        self.episode += 1

    def _learn(self, steps: dict[str, Tensor]) -> None:
        """Epochs over the rollout; then the policy is told what observations look like by now."""
        if self.hp.scale_rewards:
            steps["reward"] = self._scaled(steps)
        steps |= self._advantages(steps)
        self.batch.fill(steps)
        shuffle = torch.Generator().manual_seed(
            stream_seed(self.seed, _SHUFFLE_STREAM, self.rollout)
        )
        for _ in range(self.hp.epochs):
            order = torch.randperm(self.length, generator=shuffle)
            for chosen in order.split(self.batch.batch_size):
                self.batch.chosen = chosen
                self.trainer.update()
        seen = steps["observation"].flatten(0, 1).double()
        self.moments += torch.stack([torch.ones_like(seen), seen, seen**2]).sum(1)
        self.recipe.follow(self.hp, self.trainer.tensors, self.moments)

    def _scaled(self, steps: Mapping[str, Tensor]) -> Tensor:
        """Rewards over the standard deviation of all discounted returns so far."""
        going_on, returns = 1 - torch.maximum(steps["terminated"], steps["truncated"]), []
        for reward, alive in zip(steps["reward"].T.double(), going_on.T, strict=True):
            self.earned = self.hp.gamma * self.earned + reward
            returns.append(self.earned)
            self.earned = self.earned * alive
        found = torch.cat(returns)
        self.paid += torch.stack([torch.ones_like(found), found, found**2]).sum(1)
        scale = mean_and_sd(self.paid)[1].clamp_min(_LEAST_SD)
        return (steps["reward"] / scale).clamp(-_LARGEST, _LARGEST).float()

    def _advantages(self, steps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Log-probabilities, advantages and value targets. A truncated episode goes on in its
        value."""
        log_prob, value = self._judged(steps["observation"], steps["action"])
        after = {"state_value": self._judged(steps["next_observation"], steps["action"])[1]}
        after |= {key: steps[key].unsqueeze(-1) for key in ("reward", "terminated")}
        after["done"] = torch.maximum(steps["terminated"], steps["truncated"]).unsqueeze(-1).bool()
        after["terminated"] = after["terminated"].bool()
        found = self.gae(TensorDict({"state_value": value, "next": after}, value.shape[:2]))
        return {
            "action_log_prob": log_prob,
            "advantage": found["advantage"],
            "value_target": found["value_target"],
        }

    def _judged(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values, ``[environments, horizon, 1]`` each."""
        pairs = {"observation": observation, "action": action}
        flat = {key: value.flatten(0, 1).unsqueeze(0) for key, value in pairs.items()}
        judged = self._judge(TensorDict(flat, [1, self.length]))
        found = judged.reshape(*observation.shape[:2], 2).clone()
        return found[..., :1], found[..., 1:]

    def _more(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {"moments": self.moments, "paid": self.paid, "earned": self.earned}
        for i, walk in enumerate(self.walks):
            done = [np.asarray(row["action"], dtype=np.float32) for row in walk.rows]
            tensors[f"walks.{i}.actions"] = torch.as_tensor(np.array(done))
            tensors[f"walks.{i}.place"] = torch.as_tensor(np.asarray(walk.observation))
        return tensors, {"rollout": self.rollout, "walks": [walk.number for walk in self.walks]}

    def _restore(self, step: int, tensors: dict[str, Tensor], meta: Mapping[str, Any]) -> None:
        super()._restore(step, tensors, meta)
        self.rollout, self.moments = int(meta["rollout"]), tensors["moments"]
        self.paid, self.earned = tensors["paid"], tensors["earned"]
        for i, (walk, number) in enumerate(zip(self.walks, meta["walks"], strict=True)):
            walk.begin(self.seed, number)
            for action in tensors[f"walks.{i}.actions"].numpy():
                walk.step(action if action.ndim else int(action))
            if not np.array_equal(walk.observation, tensors[f"walks.{i}.place"].numpy()):
                raise RunError(
                    f"{self.folder}: {self.env_id} does not repeat itself, so that training cannot "
                    "go on in the middle of its episodes; delete the folder to train anew"
                )
