"""Behaviour cloning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn

from rlobj._parts import part
from rlobj.common import LossModule
from rlobj.utils import distance_loss

_KINDS = ("l1", "l2", "mse", "smooth_l1", "cross_entropy")
_PARAMETERS = ("loc", "scale", "logits", "probs")  # what a stochastic actor writes


class BCLoss(LossModule):
    """Imitates the actions of the data.

    Args:
        actor_network: stochastic or deterministic actor.
        loss_function: "l1", "l2" (or "mse"), "smooth_l1", "cross_entropy" or a function of (the
            actor's deterministic action, the data's), element-wise. None takes the cross entropy
            where the actions are integers, the negative log-likelihood ``-log pi(a|s)`` where the
            actor writes ``loc``, ``scale``, ``logits`` or ``probs``, and "l2" elsewhere.
        reduction: "mean" (default), "sum" or "none".

    The key ``pad_mask``, where set, names an entry that is True where actions are padding:
    ``[*batch]``, or with more of the action's axes.

    Raises:
        ValueError: on an unknown ``loss_function``.
    """

    @dataclass
    class _AcceptedKeys:
        action: NestedKey = "action"
        pad_mask: NestedKey | None = None

    out_keys = ["loss_bc"]

    def __init__(
        self,
        actor_network: nn.Module,
        *,
        loss_function: Callable[[Tensor, Tensor], Tensor] | str | None = None,
        reduction: str | None = None,
    ) -> None:
        super().__init__(reduction=reduction)
        if isinstance(loss_function, str) and loss_function not in _KINDS:
            raise ValueError(f"unknown loss {loss_function!r}: choose one of {_KINDS}")
        self.convert_to_functional(actor_network, "actor_network")
        self.loss_function = loss_function

    def _also_read(self) -> list[NestedKey]:
        return [] if self.tensor_keys.pad_mask is None else [self.tensor_keys.pad_mask]

    def _masks(self, tensordict: TensorDictBase) -> list[Tensor]:
        padded = [tensordict.get(k, None) for k in self._also_read()]
        return [*super()._masks(tensordict), *(~m for m in padded if m is not None)]

    def _predicted(self, tensordict: TensorDictBase) -> Tensor:
        """The actor's deterministic action.

        Raises:
            RuntimeError: when it writes none.
        """
        out, key = self.run_network("actor_network", tensordict), self.tensor_keys.action
        found = out.get(key, None)
        if found is None and (found := out.get("action", None)) is not None:
            warnings.warn(
                f"the actor writes 'action' where the loss reads {key!r}: give it this out_key",
                FutureWarning,
                stacklevel=5,
            )
        if found is None:
            raise RuntimeError(f"the actor writes no {key!r}: give it this out_key")
        return found

    @part
    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Per-sample loss: ``[*batch]`` for a likelihood or cross entropy, ``[*batch, n]`` for a
        distance."""
        action, kind = tensordict.get(self.tensor_keys.action), self.loss_function
        if kind is None and action.dtype in (torch.int64, torch.int32):
            kind = "cross_entropy"
        if kind is None and any(k in self.actor_network.out_keys for k in _PARAMETERS):
            return -self.distribution(tensordict).log_prob(action), {}
        predicted = self._predicted(tensordict)
        if callable(kind):
            return kind(predicted, action), {}
        if kind == "cross_entropy":
            return cross_entropy(predicted, action), {}
        return distance_loss(predicted, action, "l2" if kind in (None, "mse") else kind), {}

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        loss, _ = self.actor_loss(tensordict)
        return TensorDict({"loss_bc": loss})


def cross_entropy(logits: Tensor, index: Tensor) -> Tensor:
    """``-log softmax(logits)[index]``, ``[*batch]``; logits are ``[*batch, n]``, indices
    ``[*batch]`` or ``[*batch, 1]``."""
    index = index.squeeze(-1) if index.ndim == logits.ndim else index
    return F.cross_entropy(logits.movedim(-1, 1), index.long(), reduction="none")
