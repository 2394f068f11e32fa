"""Value targets as pure functions of tensors.

All tensors end in a feature axis of size 1 (``[*batch, T, 1]`` or ``[*batch, 1]`` where no time
axis is needed). ``terminated`` ends the return; ``done`` also marks truncation, after which the
bootstrapped value still counts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def td0_return_estimate(
    gamma: float | Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    terminated: Tensor | None = None,
    *,
    done: Tensor | None = None,
) -> Tensor:
    """One-step bootstrapped return ``r + gamma * (1 - terminated) * V(s')`` (Sutton & Barto, 6.1).

    ``done`` stands in for ``terminated`` where only it is given.

    Raises:
        ValueError: when neither is given.
        RuntimeError: when values, rewards and flags differ in shape.
    """
    if terminated is None:
        if done is None:
            raise ValueError("td0_return_estimate needs terminated (or done)")
        terminated = done
    if not next_state_value.shape == reward.shape == terminated.shape:
        shapes = [tuple(t.shape) for t in (next_state_value, reward, terminated)]
        raise RuntimeError(f"values, rewards and terminated must share one shape, got {shapes}")
    alive = (~terminated) if terminated.dtype == torch.bool else 1 - terminated
    return reward + gamma * alive.to(reward.dtype) * next_state_value


def td0_advantage_estimate(
    gamma: float | Tensor,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
) -> Tensor:
    """``td0_return - V(s)``; ``done`` stands in for a missing ``terminated``."""
    target = td0_return_estimate(gamma, next_state_value, reward, terminated, done=done)
    return target - state_value
