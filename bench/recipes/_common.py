"""What recipes share: training tables and samplers."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict

from bench.engine.sampling import TransitionSampler

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
    """Transitions with rewards times ``hp.reward_scale``."""
    table = transitions.select(*TRANSITION_KEYS)
    scale = getattr(hp, "reward_scale", 1.0)
    if scale != 1.0:
        table.set(("next", "reward"), table["next", "reward"] * scale)
    return table


def transition_sampler(hp: Any, table: TensorDict, device: torch.device) -> TransitionSampler:
    return TransitionSampler(table, hp.batch_size, device)
