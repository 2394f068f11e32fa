"""Decision Transformer losses (Chen et al. 2021, arXiv:2106.01345)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import nn

from rlobj.common import LossModule
from rlobj.utils import distance_loss


class DTLoss(LossModule):
    """Distance between predicted and recorded actions along a trajectory window (section 4).

    Args:
        actor_network: deterministic sequence model; reads returns-to-go, observations and actions,
            writes the predicted action.
        loss_function: "l1", "l2" or "smooth_l1".

    Padded steps are left out through the mask at ``("collector", "mask")``.
    """

    @dataclass
    class _AcceptedKeys:
        action_target: NestedKey = "action"
        action_pred: NestedKey = "action"

    out_keys = ["loss"]

    def __init__(
        self,
        actor_network: nn.Module,
        *,
        loss_function: str = "l2",
        reduction: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(reduction=reduction)
        self.loss_function = loss_function
        self.convert_to_functional(actor_network, "actor_network")
        if device is not None:
            self.to(device)

    @property  # type: ignore[misc] # derived, as in the base class
    def in_keys(self) -> list[NestedKey]:
        keys = [*self.actor_network.in_keys, self.tensor_keys.action_target]
        return list(dict.fromkeys(keys))

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        target = tensordict.get(self.tensor_keys.action_target).detach()
        out = self.run_network("actor_network", tensordict)
        predicted = out.get(self.tensor_keys.action_pred)
        loss = distance_loss(predicted, target, self.loss_function)
        return TensorDict({"loss": self.reduce(loss, tensordict)})
