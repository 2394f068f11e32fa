"""Trained policies as modules: raw observations in, actions as they are evaluated out.

What an episode remembers comes in and goes out as tensors, which start as zeros. The batch axis of
all tensors is the first one, and rows do not depend on each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor, nn

from bench.trained.run import Trained
from rlobj.specs import Bounded

FLOAT, WHOLE = "float32", "int64"


@dataclass(frozen=True)
class Slot:
    """A tensor that goes in or comes out: its name, shape without the batch axis, and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str = FLOAT

    def zeros(self, batch: int) -> Tensor:
        return torch.zeros(batch, *self.shape, dtype=getattr(torch, self.dtype))


class Standalone(nn.Module):
    """What all policies share: normalised observations, the network, and bounded actions.

    ``inputs`` come first, then ``state``; out come the action and the new state. Buffers are called
    as the loss calls its tensors, below "policy".
    """

    inputs: tuple[Slot, ...]
    state: tuple[Slot, ...] = ()
    mean: Tensor | None
    std: Tensor | None
    low: Tensor | None
    high: Tensor | None

    def __init__(self, run: Trained) -> None:
        super().__init__()
        problem = run.problem
        self.agent = run.agent  # a plain object: its loss's other networks stay outside
        self.inputs = (Slot("observation", (problem.observation,)),)
        held = {"mean": problem.mean, "std": problem.std, "low": None, "high": None}
        if isinstance(problem.space, Bounded):
            held |= {"low": problem.space.low, "high": problem.space.high}
        for name, tensor in held.items():
            self.register_buffer(name, None if tensor is None else tensor.clone())
        self.policy = nn.Module()
        reads = run.policy(1, alone=True).program.reads
        for name in reads:
            _hold(self.policy, name, run.tensors[name][run.position].detach().clone())

    @property
    def action(self) -> Slot:
        if self.low is None:
            return Slot("action", (), WHOLE)
        return Slot("action", tuple(self.low.shape))

    def seen(self, observation: Tensor) -> Tensor:
        """As the networks see it."""
        if self.mean is None or self.std is None:
            return observation
        return (observation - self.mean) / self.std

    def act(self, observed: dict[NestedKey, Tensor]) -> Tensor:
        """What the agent's policy returns, before it is bounded."""
        assert self.agent.policy is not None, "the recipe's agent has no policy"
        data = TensorDict(observed, observed["observation"].shape[:1])
        with self.agent.loss.bind(dict(self.policy.named_buffers())):
            return self.agent.policy(self.agent.loss, data)

    def bounded(self, action: Tensor) -> Tensor:
        """Continuous actions end at the bounds, as in an evaluation."""
        return action if self.low is None else torch.clamp(action, self.low, self.high)


def _hold(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Register a buffer under a name with dots."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.register_buffer(last, tensor)


class Markov(Standalone):
    """The action follows from the observation alone."""

    def forward(self, observation: Tensor) -> tuple[Tensor, ...]:
        return (self.bounded(self.act({"observation": self.seen(observation)})),)


class Recurrent(Standalone):
    """``carried`` is what the policy returned at the step before."""

    def __init__(self, run: Trained) -> None:
        super().__init__(run)
        self.size = run.problem.action.shape[0]
        self.state = (Slot("carried", (self.size + run.agent.carried,)),)

    def forward(self, observation: Tensor, carried: Tensor) -> tuple[Tensor, ...]:
        carried = self.act({"observation": self.seen(observation), "carried": carried})
        return self.bounded(carried[:, : self.size]), carried


class Sequence(Standalone):
    """Sees the last steps and the return still to be earned, in the units of the rewards.

    The windows of the state, ``[batch, context, ...]``, fill from the left, then slide; ``step``
    counts the episode's steps.
    """

    def __init__(self, run: Trained) -> None:
        super().__init__(run)
        self.context, self.scale = run.hyper.context, run.hyper.return_scale
        (observation,) = self.inputs
        self.inputs = (observation, Slot("return_to_go", ()))
        self.state = (
            Slot("observations", (self.context, *observation.shape)),
            Slot("actions", (self.context, *self.action.shape)),
            Slot("returns_to_go", (self.context, 1)),
            Slot("step", (), WHOLE),
        )

    def forward(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, ...]:
        last = step.clamp(max=self.context - 1).unsqueeze(1)  # where this step stands
        rows = torch.arange(self.context)
        full = (step >= self.context).reshape(-1, 1, 1)
        here = (rows == last).unsqueeze(2)

        def slid(window: Tensor, new: Tensor) -> Tensor:
            moved = torch.cat([window[:, 1:], window[:, :1]], 1)
            return torch.where(here, new.unsqueeze(1), torch.where(full, moved, window))

        observations = slid(observations, self.seen(observation))
        actions = slid(actions, torch.zeros_like(actions[:, 0]))
        returns_to_go = slid(returns_to_go, (return_to_go / self.scale).unsqueeze(1))
        mask = rows <= last
        window: dict[NestedKey, Tensor] = {
            "observation": observations,
            "action": actions,
            "return_to_go": returns_to_go,
            "t": (step.unsqueeze(1) - last + rows) * mask,
            ("collector", "mask"): mask,
        }
        found = self.act(window)
        action = torch.where(here, found, 0.0).sum(1)
        actions = torch.where(here, action.unsqueeze(1), actions)
        return self.bounded(action), observations, actions, returns_to_go, step + 1


def standalone(run: Trained) -> Standalone:
    """The module of a run's policy, in evaluation mode."""
    kind: Any = Markov
    if run.recipe.sequence:
        kind = Sequence
    elif run.agent.carried:
        kind = Recurrent
    run.agent.loss.eval()
    return kind(run).eval()
