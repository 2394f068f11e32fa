"""Behaviour cloning."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn

from rlobj.common import LossModule
from rlobj.utils import distance_loss


class BCLoss(LossModule):
    """Imitates the actions of the data.

    Args:
        actor_network: stochastic or deterministic actor.
        loss_function: None takes the negative log-likelihood ``-log pi(a|s)`` of a stochastic
            actor and "l2" for a deterministic one; "l1", "l2" and "smooth_l1" compare the actor's
            deterministic action with the data's.
        reduction: "mean" (default), "sum" or "none".
    """

    @dataclass
    class _AcceptedKeys:
        action: NestedKey = "action"

    out_keys = ["loss_bc"]

    def __init__(
        self,
        actor_network: nn.Module,
        *,
        loss_function: str | None = None,
        reduction: str | None = None,
    ) -> None:
        super().__init__(reduction=reduction)
        self.convert_to_functional(actor_network, "actor_network")
        if loss_function is None and not hasattr(actor_network, "get_dist"):
            loss_function = "l2"
        self.loss_function = loss_function

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Per-sample loss: ``[*batch]`` for a likelihood, ``[*batch, n]`` for a distance."""
        action = tensordict.get(self.tensor_keys.action)
        if self.loss_function is None:
            return -self.distribution(tensordict).log_prob(action), {}
        out = self.run_network("actor_network", tensordict)
        predicted = out.get(self.tensor_keys.action)
        return distance_loss(predicted, action, self.loss_function), {}

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        loss, _ = self.actor_loss(tensordict)
        return TensorDict({"loss_bc": self.reduce(loss, tensordict)})
