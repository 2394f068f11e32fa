"""Networks as TensorDict modules: actors and value functions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from tensordict import NestedKey
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import nn

from rlobj.modules.distributions import Delta


class SafeModule(TensorDictModule):
    """A TensorDictModule that remembers the spec of its output."""

    def __init__(
        self,
        module: nn.Module,
        in_keys: Sequence[NestedKey],
        out_keys: Sequence[NestedKey],
        spec: Any = None,
    ) -> None:
        super().__init__(module, in_keys=list(in_keys), out_keys=list(out_keys))
        self.spec = spec


class Actor(SafeModule):
    """A deterministic policy ``observation -> action``."""

    def __init__(
        self,
        module: nn.Module,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
        *,
        spec: Any = None,
    ) -> None:
        super().__init__(module, in_keys or ["observation"], out_keys or ["action"], spec)


class ProbabilisticActor(ProbabilisticTensorDictSequential):
    """A stochastic policy: a module that writes distribution parameters, and the distribution.

    Args:
        module: TensorDictModule that writes ``in_keys``.
        in_keys: entries handed to the distribution by keyword.
        out_keys: where the action goes.
        distribution_class, distribution_kwargs: the distribution and its fixed arguments.
        return_log_prob: also write ``action_log_prob``.
    """

    def __init__(
        self,
        module: TensorDictModule,
        in_keys: list[NestedKey] | dict[str, NestedKey],
        out_keys: Sequence[NestedKey] | None = None,
        *,
        spec: Any = None,
        distribution_class: type = Delta,
        distribution_kwargs: dict | None = None,
        return_log_prob: bool = False,
        default_interaction_type: Any = None,
    ) -> None:
        chosen = {"default_interaction_type": default_interaction_type}
        head = ProbabilisticTensorDictModule(
            in_keys=in_keys,
            out_keys=list(out_keys or ["action"]),
            distribution_class=distribution_class,
            distribution_kwargs=distribution_kwargs,
            return_log_prob=return_log_prob,
            **{k: v for k, v in chosen.items() if v is not None},
        )
        super().__init__(module, head)
        self.spec = spec


class ValueOperator(TensorDictModule):
    """A value function: V(s) writes ``state_value``, Q(s, a) writes ``state_action_value``."""

    def __init__(
        self,
        module: nn.Module,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
    ) -> None:
        in_keys = list(in_keys or ["observation"])
        if out_keys is None:
            out_keys = ["state_action_value" if "action" in in_keys else "state_value"]
        super().__init__(module, in_keys=in_keys, out_keys=list(out_keys))


class MLP(nn.Sequential):
    """A multi-layer perceptron; several inputs are concatenated along the last axis.

    Args:
        in_features, out_features: sizes of the ends.
        num_cells: width of each hidden layer (a number is repeated ``depth`` times).
        depth: number of hidden layers, when ``num_cells`` is a number.
        activation_class: between layers.
        activate_last_layer: also after the last one.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        depth: int | None = None,
        num_cells: int | Sequence[int] = 32,
        activation_class: type[nn.Module] = nn.Tanh,
        norm_class: type[nn.Module] | None = None,
        dropout: float | None = None,
        bias_last_layer: bool = True,
        activate_last_layer: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(num_cells, int):
            num_cells = [num_cells] * (3 if depth is None else depth)
        sizes = [in_features, *num_cells, out_features]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(sizes)):
            last = i == len(sizes) - 2
            layers.append(nn.Linear(a, b, bias=bias_last_layer or not last, device=device))
            if not last or activate_last_layer:
                layers += [] if norm_class is None else [norm_class(b)]
                layers.append(activation_class())
                layers += [] if not dropout else [nn.Dropout(dropout)]
        super().__init__(*layers)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.cat(inputs, -1) if len(inputs) > 1 else inputs[0])
