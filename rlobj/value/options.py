"""The keyword arguments that all value estimators share, and what ``differentiable`` means."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Required, TypedDict

import torch
from tensordict import NestedKey
from torch import nn


class Options(TypedDict, total=False):
    """Keyword arguments that every estimator takes; see ``ValueEstimatorBase``."""

    value_network: Required[nn.Module | None]
    shifted: bool
    differentiable: bool
    skip_existing: bool | None
    advantage_key: NestedKey | None
    value_target_key: NestedKey | None
    value_key: NestedKey | None
    device: torch.device | str | None
    deactivate_vmap: bool
    value_chunk_size: int | None
    num_chunks: int | None
    num_chunk: int | None
    value_chunk_dim: int
    shifted_budget: int
    group_key: NestedKey | None


def in_grad_mode(method: Callable) -> Callable:
    """Run an estimator's method without gradients unless it is ``differentiable``; an outer
    ``no_grad`` holds in any case."""

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        with nullcontext() if self.differentiable else torch.no_grad():
            return method(self, *args, **kwargs)

    return wrapper
