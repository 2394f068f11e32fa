"""What each seed's policy read at its best evaluation, which checkpoints keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.engine.evaluation import Evaluation
from bench.evaluate import Rollouts

_PREFIX = "best."


class Best:
    """By seed, in the order of the group: the evaluation of largest mean return so far (of equal
    ones the first), as its step and that mean, and the tensors ``[n_seeds, ...]`` that went in."""

    def __init__(self, seeds: int) -> None:
        self.found: list[dict[str, Any] | None] = [None] * seeds
        self._tensors: dict[str, Tensor] = {}

    def offer(self, evaluation: Evaluation, rollouts: Rollouts) -> None:
        """Keep what is better than what was best before."""
        means: np.ndarray = rollouts.returns.mean(1)
        for i in evaluation.alive:
            known = self.found[i]
            if known is None or means[i] > known["return"]:
                self.found[i] = {"step": evaluation.step, "return": float(means[i])}
                for name, tensor in evaluation.tensors.items():
                    kept = self._tensors.setdefault(name, torch.zeros_like(tensor))
                    kept[i] = tensor[i]

    def tensors(self) -> dict[str, Tensor]:
        return {f"{_PREFIX}{name}": tensor for name, tensor in self._tensors.items()}

    def restore(
        self, found: Sequence[dict[str, Any] | None], tensors: Mapping[str, Tensor]
    ) -> None:
        """Take up what a checkpoint holds."""
        self.found = list(found)
        self._tensors = best_of(tensors)


def best_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By their own names, those tensors of a checkpoint that belong to the best evaluations."""
    return {k.removeprefix(_PREFIX): t for k, t in tensors.items() if k.startswith(_PREFIX)}
