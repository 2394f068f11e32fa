"""TD3+BC (Fujimoto & Gu 2021, arXiv:2106.06860)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from tensordict import TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn

from rlobj._arguments import refuse
from rlobj._parts import part
from rlobj.td3 import TD3Base


class TD3BCLoss(TD3Base):
    """TD3 with a behaviour-cloning term in the actor loss.

    Args:
        actor_network: deterministic actor.
        qvalue_network: Q(s, a), one module (copied ``num_qvalue_nets`` times) or a list.
        action_spec, bounds: the action bounds, as a spec or as ``(low, high)``; give exactly one.
        policy_noise, noise_clip: target policy smoothing (Fujimoto et al. 2018, eq. 14).
        alpha: weight of the Q term relative to its own scale (eq. 5).
        loss_function: "l1", "l2" or "smooth_l1" for the critics.
        delay_actor, delay_qvalue: keep delayed target parameters.

    Raises:
        ValueError: when both or neither of ``action_spec`` and ``bounds`` are given, or bounds are
            not a pair with low < high.
    """

    out_keys = [
        "loss_actor",
        "loss_qvalue",
        "bc_loss",
        "lmbd",
        "pred_value",
        "state_action_value_actor",
        "next_state_value",
        "target_value",
    ]

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: nn.Module | Sequence[nn.Module],
        *,
        action_spec: Any = None,
        bounds: tuple[float, float] | None = None,
        num_qvalue_nets: int = 2,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        alpha: float = 2.5,
        loss_function: str = "smooth_l1",
        delay_actor: bool = True,
        delay_qvalue: bool = True,
        priority_key: str | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: bool | str = "auto",
    ) -> None:
        refuse(priority_key=priority_key)
        super().__init__(
            actor_network,
            qvalue_network,
            action_spec=action_spec,
            bounds=bounds,
            num_qvalue_nets=num_qvalue_nets,
            policy_noise=policy_noise,
            noise_clip=noise_clip,
            loss_function=loss_function,
            delay_actor=delay_actor,
            delay_qvalue=delay_qvalue,
            separate_losses=separate_losses,
            reduction=reduction,
            deactivate_vmap=deactivate_vmap,
            use_prioritized_weights=use_prioritized_weights,
        )
        self.alpha = alpha

    @part
    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``-lambda * Q_1(s, pi(s)) + mean (pi(s) - a)^2`` per sample, with
        ``lambda = alpha / mean |Q_1|`` (eq. 3 and 5)."""
        action = self._action(tensordict)
        q = self._q(tensordict, action, detach=True, first=True)
        gap = F.mse_loss(action, tensordict.get(self.tensor_keys.action), reduction="none")
        bc = self._mean(gap, tensordict)
        lmbd = self.alpha / self._mean(q.abs(), tensordict).detach()
        info = {"state_action_value_actor": q.detach(), "bc_loss": bc.detach(), "lmbd": lmbd}
        return -lmbd * q + bc, info

    @part
    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped double-Q Bellman error with target policy smoothing, summed over critics, per
        sample (Fujimoto et al. 2018, algorithm 1)."""
        return self._critic_loss(tensordict)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self._both(tensordict, self.qvalue_loss)
