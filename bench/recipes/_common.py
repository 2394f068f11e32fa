"""What recipes share: training tables, samplers, evaluated policies, learning-rate schedules."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from bench.engine.agent import Schedule
from bench.engine.sampling import TransitionSampler
from rlobj import LossModule
from rlobj.modules import deterministic_sample

TRANSITION_KEYS = (
    "observation",
    "action",
    ("next", "observation"),
    ("next", "reward"),
    ("next", "done"),
    ("next", "terminated"),
    "valid_next",
)


def plain_table(hp: Any, transitions: TensorDict) -> TensorDict:
    """Transitions as they are."""
    return transitions.select(*TRANSITION_KEYS)


def scaled_table(transitions: TensorDict, scale: float, bias: float) -> TensorDict:
    """Transitions with rewards ``scale * r + bias``."""
    table = transitions.select(*TRANSITION_KEYS)
    return table.set(("next", "reward"), table["next", "reward"] * scale + bias)


def episode_returns(transitions: TensorDict) -> Tensor:
    """Undiscounted return of each episode, float64 ``[episodes]``."""
    reward = transitions["next", "reward"].squeeze(-1).double()
    empty = torch.zeros(int(transitions["episode"].max()) + 1, dtype=torch.float64)
    return empty.index_add_(0, transitions["episode"], reward)


def transition_sampler(
    hp: Any, table: TensorDict, device: torch.device, file: Path | None = None
) -> TransitionSampler:
    return TransitionSampler(table, hp.batch_size, device, file)


def actor_output(loss: LossModule, observed: TensorDict) -> Tensor:
    """The action of a deterministic actor."""
    return loss.run_network("actor_network", observed)["action"]


def distribution_mode(loss: LossModule, observed: TensorDict) -> Tensor:
    """The deterministic action of a stochastic actor."""
    return deterministic_sample(loss.distribution(observed))


def cosine(steps: int) -> Schedule:
    """Cosine decay to zero at ``steps`` (0: the run's last step)."""

    def factor(step: int, total: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1.0, step / (steps or total))))

    return factor


def warmup(steps: int) -> Schedule:
    """Linear from 0 to 1 over ``steps`` updates, then constant."""

    def factor(step: int, total: int) -> float:
        return min(1.0, (step + 1) / max(1, steps))

    return factor
