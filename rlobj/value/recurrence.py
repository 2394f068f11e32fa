"""The linear recurrence that every multi-step return is made of, in two forms, and the
lambda-return written with it.

``y_t = inputs_t + decay_t * y_{t+1}`` with ``y_T = 0``. Time is the first axis of all tensors; both
arguments have the same shape ``[T, ...]``, T >= 1. Neither form looks at values, so both can be
vmapped, traced and differentiated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Scan = Callable[[Tensor, Tensor], Tensor]
Scalar = float | Tensor


def sequential(decay: Tensor, inputs: Tensor) -> Tensor:
    """One step after the other from the end: T dependent operations."""
    y, found = torch.zeros_like(inputs[0]), []
    for t in reversed(range(inputs.shape[0])):
        y = inputs[t] + decay[t] * y
        found.append(y)
    return torch.stack(found[::-1])


def parallel(decay: Tensor, inputs: Tensor) -> Tensor:
    """All steps at once in ceil(log2 T) rounds (Hillis & Steele 1986, "Data parallel algorithms").

    After a round ``inputs_t`` sums twice as many steps and ``decay_t`` is the product of their
    decays. Nothing is divided by a product of discounts, so zeros (ends of trajectories, lambda of
    0) and long rollouts lose no precision.
    """
    reach, length = 1, inputs.shape[0]
    while reach < length:
        joined = inputs[:-reach] + decay[:-reach] * inputs[reach:]
        inputs = torch.cat([joined, inputs[-reach:]])
        decay = torch.cat([decay[:-reach] * decay[reach:], decay[-reach:]])
        reach *= 2
    return inputs


def alive(flag: Tensor, like: Tensor) -> Tensor:
    """``1 - flag`` in the type of ``like``; flags are bool, or numbers 0 and 1."""
    return ((~flag) if flag.dtype == torch.bool else 1 - flag).to(like.dtype)


def runs_on(done: Tensor, like: Tensor) -> Tensor:
    """1 where the next step of the batch continues the trajectory; the last step has none."""
    onward = alive(done, like)
    return torch.cat([onward[:-1], torch.zeros_like(onward[-1:])])


def one_shape(*tensors: Tensor) -> None:
    if any(t.shape != tensors[0].shape for t in tensors):
        shapes = [tuple(t.shape) for t in tensors]
        raise RuntimeError(f"values, rewards and flags must share one shape, got {shapes}")


def time_first(value: Scalar, reward: Tensor, time_dim: int) -> Scalar:
    """Numbers and tensors without axes stay; others get ``reward``'s shape and time in front."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.expand_as(reward).movedim(time_dim, 0)


def _lambda_recurrence(
    scan: Scan,
    gamma: Scalar,
    lmbda: Scalar,
    next_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor,
) -> Tensor:
    """The lambda-return with time first: equation of ``td_lambda_return_estimate``, sorted
    into what step t adds and the factor on G_{t+1}."""
    discount = gamma * alive(terminated, next_value)
    onward = lmbda * runs_on(done, next_value)
    return scan(discount * onward, reward + discount * (1 - onward) * next_value)


def lambda_return(
    scan: Scan,
    gamma: Scalar,
    lmbda: Scalar,
    next_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None,
    rolling_gamma: bool | None,
    time_dim: int,
) -> Tensor:
    """Shapes, time axis and the meaning of a gamma per step; see ``td_lambda_return_estimate``."""
    terminated = done if terminated is None else terminated
    one_shape(next_value, reward, done, terminated)
    per_step = any(isinstance(x, Tensor) and x.numel() > 1 for x in (gamma, lmbda))
    gamma, lmbda = (time_first(x, reward, time_dim) for x in (gamma, lmbda))
    steps = [x.movedim(time_dim, 0) for x in (next_value, reward, done, terminated)]
    if rolling_gamma is None or rolling_gamma:
        return _lambda_recurrence(scan, gamma, lmbda, *steps).movedim(0, time_dim)
    if not per_step:
        raise RuntimeError("rolling_gamma=False needs a gamma or lmbda per step")
    # [time, start]: the returns of every suffix under each start's own gamma and lambda
    gamma, lmbda = (
        x.unsqueeze(0) if isinstance(x, Tensor) and x.ndim else x for x in (gamma, lmbda)
    )
    table = _lambda_recurrence(scan, gamma, lmbda, *(x.unsqueeze(1) for x in steps))
    return table.diagonal(dim1=0, dim2=1).movedim(-1, 0).movedim(0, time_dim)
