"""TD3+BC (Fujimoto & Gu 2021, arXiv:2106.06860)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn

from rlobj import noise
from rlobj.common import LossModule
from rlobj.specs import bounds as bounds_of
from rlobj.utils import ValueEstimators, distance_loss, weight_like


class TD3BCLoss(LossModule):
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

    @dataclass
    class _AcceptedKeys:
        action: NestedKey = "action"
        state_action_value: NestedKey = "state_action_value"
        priority: NestedKey = "td_error"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority_weight: NestedKey = "priority_weight"

    default_value_estimator = ValueEstimators.TD0
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
    max_action: Tensor
    min_action: Tensor

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
        separate_losses: bool = False,
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: bool | str = "auto",
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap)
        self.use_prioritized_weights = use_prioritized_weights
        self.policy_noise, self.noise_clip, self.alpha = policy_noise, noise_clip, alpha
        self.loss_function = loss_function
        low, high = _action_bounds(action_spec, bounds)
        self.register_buffer("max_action", high)
        self.register_buffer("min_action", low)
        self.convert_to_functional(actor_network, "actor_network", create_target_params=delay_actor)
        self.convert_to_functional(
            qvalue_network,
            "qvalue_network",
            expand_dim=num_qvalue_nets,
            create_target_params=delay_qvalue,
            compare_against=list(actor_network.parameters()) if separate_losses else None,
        )

    def _q(self, tensordict: TensorDictBase, action: Tensor, **which: bool) -> Tensor:
        """Q-values of ``action``, ``[n_critics, *batch]``."""
        inputs = tensordict.copy().set(self.tensor_keys.action, action)
        out = self.run_network("qvalue_network", inputs, **which)
        return out.get(self.tensor_keys.state_action_value).squeeze(-1)

    def _mean(self, value: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Mean over the batch without what the mask leaves out, whatever the reduction."""
        mask = self._mask(tensordict)
        if mask is None:
            return value.mean()
        weight = weight_like(mask.to(value.dtype), value)
        return (value * weight).sum() / weight.sum()

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``-lambda * Q_1(s, pi(s)) + mean (pi(s) - a)^2`` per sample, with
        ``lambda = alpha / mean |Q_1|`` (eq. 3 and 5)."""
        out = self.run_network("actor_network", tensordict)
        action = out.get(self.tensor_keys.action)
        q = self._q(tensordict, action, detach=True)
        gap = F.mse_loss(action, tensordict.get(self.tensor_keys.action), reduction="none")
        bc = self._mean(gap, tensordict)
        lmbd = self.alpha / self._mean(q[0].abs(), tensordict).detach()
        info = {"state_action_value_actor": q.detach(), "bc_loss": bc.detach(), "lmbd": lmbd}
        return -lmbd * q[0] + bc, info

    def _smoothed_action(self, after: TensorDictBase) -> Tensor:
        out = self.run_network("actor_network", after, target=True)
        action = out.get(self.tensor_keys.action)
        eps = noise.normal(action.shape, action) * self.policy_noise
        eps = eps.clamp(-self.noise_clip, self.noise_clip)
        return (action + eps).clamp(self.min_action, self.max_action)

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped double-Q Bellman error with target policy smoothing, summed over critics, per
        sample (Fujimoto et al. 2018, algorithm 1)."""
        with torch.no_grad():
            after = tensordict.get("next")
            q_next = self._q(after, self._smoothed_action(after), target=True).min(0).values
            target = self.bootstrap(tensordict, q_next)
        q = self._q(tensordict, tensordict.get(self.tensor_keys.action))
        loss = distance_loss(q, target.expand_as(q), self.loss_function).sum(0)
        info = {
            "td_error": (q - target).detach().pow(2).max(0).values,
            "next_state_value": q_next,
            "pred_value": q.detach(),
            "target_value": target,
        }
        return loss, info

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._warn_if_targets_stand_still()
        actor, actor_info = self.actor_loss(tensordict)
        qvalue, info = self.qvalue_loss(tensordict)
        tensordict.set(self.tensor_keys.priority, info.pop("td_error").unsqueeze(-1))
        return TensorDict(
            {
                "loss_actor": self.reduce(actor, tensordict),
                "loss_qvalue": self.reduce(qvalue, tensordict),
                **actor_info,
                **info,
            }
        )


def _action_bounds(action_spec: Any, bounds: Any) -> tuple[Tensor, Tensor]:
    if (action_spec is None) == (bounds is None):
        raise ValueError("give exactly one of action_spec and bounds")
    if action_spec is not None:
        low, high = bounds_of(action_spec)
    else:
        if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
            raise ValueError(f"bounds must be (low, high), got {bounds!r}")
        low, high = (torch.as_tensor(b, dtype=torch.get_default_dtype()) for b in bounds)
        if bool((low >= high).any()):
            raise ValueError(f"bounds: low must be below high, got {bounds!r}")
    return low.detach().clone(), high.detach().clone()
