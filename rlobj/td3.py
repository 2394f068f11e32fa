"""TD3: twin critics and a smoothed target policy (Fujimoto et al. 2018, arXiv:1802.09477)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn

from rlobj import noise
from rlobj._arguments import refuse
from rlobj._parts import part
from rlobj.common import LossModule
from rlobj.specs import bounds as bounds_of
from rlobj.utils import ValueEstimators, distance_loss, weight_like


class TD3Base(LossModule):
    """What TD3 and the losses built on it share: bounds, the smoothed target, the critics' loss."""

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
    max_action: Tensor
    min_action: Tensor
    actor_loss: Callable[[TensorDictBase], tuple[Tensor, dict[str, Tensor]]]  # of a subclass

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: nn.Module | Sequence[nn.Module],
        *,
        action_spec: Any,
        bounds: tuple[float, float] | None,
        num_qvalue_nets: int,
        policy_noise: float,
        noise_clip: float,
        loss_function: str,
        delay_actor: bool,
        delay_qvalue: bool,
        separate_losses: bool,
        reduction: str | None,
        deactivate_vmap: bool,
        use_prioritized_weights: bool | str,
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap)
        self.use_prioritized_weights = use_prioritized_weights
        self.policy_noise, self.noise_clip = policy_noise, noise_clip
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

    def _action(self, tensordict: TensorDictBase, **which: Any) -> Tensor:
        out = self.run_network("actor_network", tensordict, **which)
        return out[self.tensor_keys.action]

    def _mean(self, value: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Mean over the batch without what the mask leaves out, whatever the reduction."""
        mask = self._mask(tensordict)
        if mask is None:
            return value.mean()
        weight = weight_like(mask.to(value.dtype), value)
        return (value * weight).sum() / weight.sum()

    def _smoothed_action(self, after: TensorDictBase) -> Tensor:
        """``clip(pi'(s') + clip(eps, -c, c), low, high)``, Fujimoto et al. 2018, eq. 14."""
        action = self._action(after, target=True)
        eps = noise.normal(action.shape, action) * self.policy_noise
        eps = eps.clamp(-self.noise_clip, self.noise_clip)
        return (action + eps).clamp(self.min_action, self.max_action)

    def _next_value(self, after: TensorDictBase) -> Tensor:
        """``min_i Q'_i(s', a')`` of the smoothed action, from the entries below ``next``."""
        return self._q(after, self._smoothed_action(after), target=True).min(0).values

    def _critic_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped double-Q Bellman error with target policy smoothing, summed over critics, per
        sample (Fujimoto et al. 2018, algorithm 1)."""
        with torch.no_grad():
            q_next = self._next_value(tensordict.get("next"))
            target = self.bootstrap(tensordict, q_next)
        q = self._q(tensordict, tensordict.get(self.tensor_keys.action))
        loss = distance_loss(q, target.expand_as(q), self.loss_function).sum(0)
        info = {
            "td_error": (q.detach() - target).pow(2),
            "next_state_value": q_next,
            "pred_value": q.detach(),
            "target_value": target,
        }
        return loss, info

    def _both(self, tensordict: TensorDictBase, critic_loss: Callable) -> TensorDictBase:
        """What ``forward`` returns; writes the largest squared error of any critic as priority."""
        actor, actor_info = self.actor_loss(tensordict)
        qvalue, info = critic_loss(tensordict)
        tensordict.set(self.tensor_keys.priority, info.pop("td_error").max(0).values)
        losses = {"loss_actor": actor, "loss_qvalue": qvalue}
        return self.output(losses, {**actor_info, **info}, tensordict)


class TD3Loss(TD3Base):
    """Twin delayed deep deterministic policy gradient.

    Args:
        actor_network: deterministic actor.
        qvalue_network: Q(s, a), one module (copied ``num_qvalue_nets`` times) or a list.
        action_spec, bounds: the action bounds, as a spec or as ``(low, high)``; give exactly one.
        policy_noise, noise_clip: target policy smoothing (eq. 14).
        loss_function: "l1", "l2" or "smooth_l1" for the critics.
        delay_actor, delay_qvalue: keep delayed target parameters.

    Raises:
        ValueError: when both or neither of ``action_spec`` and ``bounds`` are given, or bounds are
            not a pair with low < high.
    """

    out_keys = [
        "loss_actor",
        "loss_qvalue",
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
        loss_function: str = "smooth_l1",
        delay_actor: bool = True,
        delay_qvalue: bool = True,
        gamma: float | None = None,
        priority_key: str | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: bool | str = "auto",
    ) -> None:
        refuse(gamma=gamma, priority_key=priority_key)
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

    @part
    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``-Q_1(s, pi(s))`` per sample (algorithm 1)."""
        q = self._q(tensordict, self._action(tensordict), detach=True)
        return -q[0], {"state_action_value_actor": q.detach()}

    @part
    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped double-Q Bellman error with target policy smoothing, summed over critics, per
        sample (algorithm 1)."""
        return self._critic_loss(tensordict)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self._both(tensordict, self.value_loss)


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
