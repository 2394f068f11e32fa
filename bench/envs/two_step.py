"""The two-step game of the QMIX paper (Rashid et al. 2018, arXiv:1803.11485, section 5, table 1):
two agents, one reward. The first agent's first action chooses the matrix that the second step pays
from: 7 in any case, or 8, the best return, if both agents play for it, and 1 or 0 if they do not.

Everything about both agents goes through one vector and one number, so that single-agent tools
(loaders, checks, evaluation, a joint Q-learner) work unchanged; :class:`Layout` takes them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

PAYOFF = np.array([[[7.0, 7.0], [7.0, 7.0]], [[0.0, 1.0], [1.0, 8.0]]])  # [first action, a0, a1]


@dataclass(frozen=True)
class Layout:
    """How several agents share one vector and one number.

    An observation is the agents' observations one after the other, then the global state; a joint
    action numbers the tuples of the agents' actions, the last agent's counting fastest.
    """

    agents: int
    observation: int  # numbers per agent
    state: int
    actions: int  # per agent

    @property
    def width(self) -> int:
        """Numbers of a joint observation."""
        return self.agents * self.observation + self.state

    def observations(self, joint: Tensor) -> Tensor:
        """Each agent's observation, ``[*batch, width]`` to ``[*batch, agents, observation]``."""
        own = joint[..., : self.agents * self.observation]
        return own.unflatten(-1, (self.agents, self.observation))

    def states(self, joint: Tensor) -> Tensor:
        """The global state, ``[*batch, width]`` to ``[*batch, state]``."""
        return joint[..., self.agents * self.observation :]

    def split(self, joint: Tensor) -> Tensor:
        """Each agent's action, ``[*batch]`` to int64 ``[*batch, agents]``."""
        weights = self._weights(joint)
        return joint.long().unsqueeze(-1) // weights % self.actions

    def join(self, actions: Tensor) -> Tensor:
        """Joint actions int64 ``[*batch]`` of the agents' ``[*batch, agents]``."""
        return (actions.long() * self._weights(actions)).sum(-1)

    def _weights(self, like: Tensor) -> Tensor:
        powers = [self.actions**i for i in reversed(range(self.agents))]
        return torch.tensor(powers, device=like.device)


LAYOUT = Layout(agents=2, observation=5, state=3, actions=2)


class TwoStep(gymnasium.Env):
    """Two steps per episode, the first without reward.

    The state is one-hot: the first step, and the second one after each first action of agent 0;
    zeros behind the end. An agent observes the state and its own number, one-hot.
    """

    observation_space = Box(0.0, 1.0, (LAYOUT.width,), np.float32)
    action_space = Discrete(LAYOUT.actions**LAYOUT.agents)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        first, second = divmod(int(action), LAYOUT.actions)
        ended = self.place > 0
        reward = float(PAYOFF[self.place - 1, first, second]) if ended else 0.0
        self.place = 3 if ended else 1 + first
        return self._observation(), reward, ended, False, {}

    def _observation(self) -> np.ndarray:
        state = np.eye(4, LAYOUT.state, dtype=np.float32)[self.place]
        own = [np.concatenate([state, agent]) for agent in np.eye(LAYOUT.agents, dtype=np.float32)]
        return np.concatenate([*own, state])
