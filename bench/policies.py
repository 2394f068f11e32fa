"""Evaluated policies: from a trainer's stacked parameters to actions for every seed and episode."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from bench.engine.trace import trace_policy
from bench.engine.trainer import Trainer
from bench.recipe import Problem


def normalized(observation: Tensor, problem: Problem, device: torch.device) -> Tensor:
    """Observations as the networks see them, on the networks' device."""
    if problem.mean is not None and problem.std is not None:
        observation = (observation - problem.mean) / problem.std
    return observation.to(device)


class MarkovPolicy:
    """Acts on the current observation."""

    def __init__(self, trainer: Trainer, problem: Problem, episodes: int) -> None:
        self.trainer, self.problem = trainer, problem
        shape = (len(trainer.seeds), episodes)
        zeros = torch.zeros(*shape, problem.observation, device=trainer.device)
        probe = TensorDict({"observation": zeros}, shape)
        policy = trainer.agent.policy
        assert policy is not None, "the recipe's agent has no policy"
        self._program = trace_policy(policy, trainer.agent.loss, trainer.tensors, probe)

    def reset(self, seeds: int, episodes: int) -> None: ...

    def act(self, observation: Tensor) -> Tensor:
        seen = normalized(observation, self.problem, self.trainer.device)
        return self._program(TensorDict({"observation": seen}, seen.shape[:2]))

    def observe(self, reward: Tensor) -> None: ...


class SequencePolicy:
    """Acts on the last ``context`` steps and the return still to be earned.

    Args:
        target: raw return asked for.
        scale: returns are divided by this, as in training.
    """

    def __init__(
        self,
        trainer: Trainer,
        problem: Problem,
        episodes: int,
        *,
        context: int,
        target: float,
        scale: float,
    ) -> None:
        self.trainer, self.problem, self.context = trainer, problem, context
        self.target, self.scale = target, scale
        self.reset(len(trainer.seeds), episodes)
        policy = trainer.agent.policy
        assert policy is not None, "the recipe's agent has no policy"
        self._program = trace_policy(policy, trainer.agent.loss, trainer.tensors, self.window)

    def reset(self, seeds: int, episodes: int) -> None:
        shape, k = (seeds, episodes), self.context
        self.window = TensorDict(
            {
                "observation": torch.zeros(*shape, k, self.problem.observation),
                "action": torch.zeros(*shape, k, self.problem.action.shape[0]),
                "return_to_go": torch.zeros(*shape, k, 1),
                "t": torch.zeros(*shape, k),
                ("collector", "mask"): torch.zeros(*shape, k, dtype=torch.bool),
            },
            shape,
        ).to(self.trainer.device)
        self.step = 0
        self.to_go = torch.full(shape, self.target / self.scale, device=self.trainer.device)

    def _row(self) -> int:
        """Where the current step stands: the window fills from the left, then slides."""
        if self.step < self.context:
            return self.step
        for key in self.window.keys(True, True):
            value = self.window.get(key)
            value[:, :, :-1] = value[:, :, 1:].clone()
        return self.context - 1

    def act(self, observation: Tensor) -> Tensor:
        row, w = self._row(), self.window
        w["observation"][:, :, row] = normalized(observation, self.problem, self.trainer.device)
        w["action"][:, :, row] = 0.0
        w["return_to_go"][:, :, row, 0] = self.to_go
        w["t"][:, :, row] = self.step
        w["collector", "mask"][:, :, row] = True
        action = self._program(w)[:, :, row]
        w["action"][:, :, row] = action
        self.step += 1
        return action

    def observe(self, reward: Tensor) -> None:
        self.to_go = self.to_go - reward.to(self.to_go.device) / self.scale
