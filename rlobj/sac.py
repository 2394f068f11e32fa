"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import InteractionType, dispatch
from torch import Tensor, nn

from rlobj.common import LossModule
from rlobj.modules.distributions import rsample_and_log_prob
from rlobj.utils import ValueEstimators, distance_loss


class EntropyLoss(LossModule):
    """What maximum-entropy losses share: the temperature and its automatic tuning."""

    deterministic_sampling_mode = InteractionType.RANDOM
    log_alpha: Tensor

    def _init_temperature(
        self,
        alpha_init: float,
        min_alpha: float | None,
        max_alpha: float | None,
        fixed_alpha: bool,
    ) -> None:
        if alpha_init <= 0:
            raise ValueError(f"alpha_init must be positive, got {alpha_init}")
        self.fixed_alpha = fixed_alpha
        self.register_buffer("alpha_init", torch.tensor(float(alpha_init)))
        log_alpha = torch.tensor(math.log(alpha_init))
        if fixed_alpha:
            self.register_buffer("log_alpha", log_alpha)
        else:
            self.log_alpha = nn.Parameter(log_alpha)
        self._log_alpha_range = tuple(
            None if a is None else math.log(a) for a in (min_alpha, max_alpha)
        )

    def _resolve_target_entropy(self, target_entropy: str | float, action_spec: Any) -> float:
        """``"auto"`` is minus the number of action dimensions (Haarnoja et al. 2018, app. D)."""
        if target_entropy != "auto":
            return float(target_entropy)
        spec = action_spec if action_spec is not None else getattr(self.actor_network, "spec", None)
        if spec is not None and not hasattr(spec, "low") and hasattr(spec, "__getitem__"):
            spec = spec[self.tensor_keys.action]
        if spec is None:
            raise RuntimeError(
                "target_entropy='auto' needs the action's shape: pass action_spec, or build the "
                "actor with spec=, or give target_entropy a number"
            )
        return -float(math.prod(spec.shape) or 1)

    @property
    def alpha(self) -> Tensor:
        """The entropy temperature, clamped to its range, without gradient."""
        low, high = self._log_alpha_range
        log_alpha = self.log_alpha.detach()
        if low is not None or high is not None:
            log_alpha = log_alpha.clamp(low, high)
        return log_alpha.exp()

    def _temperature_loss(self, log_prob: Tensor, target_entropy: float | Tensor) -> Tensor:
        """``J(alpha) = -log(alpha) * (log pi + target entropy)``, eq. 18 in its log form."""
        if self.fixed_alpha:
            return torch.zeros_like(log_prob)
        return -self.log_alpha * (log_prob.detach() + target_entropy)


class SACLoss(EntropyLoss):
    """Soft actor-critic with an ensemble of critics and an automatically tuned temperature.

    Args:
        actor_network: stochastic actor.
        qvalue_network: Q(s, a), one module (copied ``num_qvalue_nets`` times) or a list.
        loss_function: "l1", "l2" or "smooth_l1".
        alpha_init, min_alpha, max_alpha, fixed_alpha: the temperature and its range.
        target_entropy: number or "auto" (minus the number of action dimensions).
        delay_actor, delay_qvalue: keep delayed target parameters.

    Raises:
        RuntimeError: when ``target_entropy="auto"`` and no action spec is known.
    """

    @dataclass
    class _AcceptedKeys:
        action: NestedKey = "action"
        value: NestedKey = "state_value"
        state_action_value: NestedKey = "state_action_value"
        log_prob: NestedKey = "action_log_prob"
        priority: NestedKey = "td_error"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority_weight: NestedKey = "priority_weight"

    default_value_estimator = ValueEstimators.TD0
    out_keys = ["loss_actor", "loss_qvalue", "loss_alpha", "alpha", "entropy"]

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: nn.Module | Sequence[nn.Module],
        *,
        num_qvalue_nets: int = 2,
        loss_function: str = "smooth_l1",
        alpha_init: float = 1.0,
        min_alpha: float | None = None,
        max_alpha: float | None = None,
        action_spec: Any = None,
        fixed_alpha: bool = False,
        target_entropy: str | float = "auto",
        delay_actor: bool = False,
        delay_qvalue: bool = True,
        separate_losses: bool = False,
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: bool | str = "auto",
    ) -> None:
        super().__init__(reduction=reduction, deactivate_vmap=deactivate_vmap)
        self.use_prioritized_weights = use_prioritized_weights
        self.loss_function = loss_function
        self._init_temperature(alpha_init, min_alpha, max_alpha, fixed_alpha)
        self.convert_to_functional(actor_network, "actor_network", create_target_params=delay_actor)
        self.convert_to_functional(
            qvalue_network,
            "qvalue_network",
            expand_dim=num_qvalue_nets,
            create_target_params=delay_qvalue,
            compare_against=list(actor_network.parameters()) if separate_losses else None,
        )
        entropy = self._resolve_target_entropy(target_entropy, action_spec)
        self.register_buffer("_target_entropy", torch.tensor(entropy))

    @property
    def target_entropy(self) -> Tensor:
        return self._target_entropy

    def _q(self, tensordict: TensorDictBase, action: Tensor, **which: bool) -> Tensor:
        """Q-values of ``action``, ``[n_critics, *batch]``."""
        inputs = tensordict.copy().set(self.tensor_keys.action, action)
        out = self.run_network("qvalue_network", inputs, **which)
        return out.get(self.tensor_keys.state_action_value).squeeze(-1)

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``alpha * log pi(a|s) - min_i Q_i(s, a)`` with ``a ~ pi``, per sample (eq. 9)."""
        action, log_prob = rsample_and_log_prob(self.distribution(tensordict))
        q = self._q(tensordict, action, detach=True).min(0).values
        return self.alpha * log_prob - q, {"log_prob": log_prob.detach()}

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Soft Bellman error against ``r + gamma (min Q'(s', a') - alpha log pi(a'|s'))``, summed
        over critics, per sample (eq. 5)."""
        with torch.no_grad():
            after = tensordict.get("next")
            action, log_prob = rsample_and_log_prob(self.distribution(after, target=True))
            q_next = self._q(after, action, target=True).min(0).values
            target = self.bootstrap(tensordict, q_next - self.alpha * log_prob)
        q = self._q(tensordict, tensordict.get(self.tensor_keys.action))
        loss = distance_loss(q, target.expand_as(q), self.loss_function).sum(0)
        return loss, {"td_error": (q - target).detach().abs().max(0).values}

    def alpha_loss(self, log_prob: Tensor) -> Tensor:
        """Temperature loss per sample."""
        return self._temperature_loss(log_prob, self.target_entropy)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._warn_if_targets_stand_still()
        qvalue, q_info = self.qvalue_loss(tensordict)
        actor, info = self.actor_loss(tensordict)
        tensordict.set(self.tensor_keys.priority, q_info["td_error"].unsqueeze(-1))
        return TensorDict(
            {
                "loss_actor": self.reduce(actor, tensordict),
                "loss_qvalue": self.reduce(qvalue, tensordict),
                "loss_alpha": self.reduce(self.alpha_loss(info["log_prob"]), tensordict),
                "alpha": self.alpha,
                "entropy": -info["log_prob"].mean(),
            }
        )
