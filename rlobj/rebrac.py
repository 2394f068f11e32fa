"""ReBRAC (Tarasov et al. 2023, arXiv:2305.09836)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordict import NestedKey, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn

from rlobj._parts import part
from rlobj.td3 import TD3Base


class ReBRACLoss(TD3Base):
    """TD3 with a behaviour-cloning penalty in the actor's loss and one in the critics' target.

    The batch holds the action that the data took at s' under ``("next", action)``.

    Args:
        actor_network: deterministic actor.
        qvalue_network: Q(s, a), one module (copied ``num_qvalue_nets`` times) or a list.
        action_spec, bounds: the action bounds, as a spec or as ``(low, high)``; give exactly one.
        actor_bc_coeff, critic_bc_coeff: weights of the two penalties, beta_1 and beta_2; buffers
            that a schedule can set.
        normalize_q: divide the actor's Q by its mean absolute value over the batch.
        policy_noise, noise_clip: target policy smoothing.
        loss_function: "l1", "l2" or "smooth_l1" for the critics.

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
    actor_bc_coeff: Tensor
    critic_bc_coeff: Tensor

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: nn.Module | Sequence[nn.Module],
        *,
        action_spec: Any = None,
        bounds: tuple[float, float] | None = None,
        num_qvalue_nets: int = 2,
        actor_bc_coeff: float = 1.0,
        critic_bc_coeff: float = 1.0,
        normalize_q: bool = True,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        loss_function: str = "l2",
        delay_actor: bool = True,
        delay_qvalue: bool = True,
        separate_losses: bool = False,
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: bool | str = "auto",
    ) -> None:
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
        self.register_coeff_buffer("actor_bc_coeff", actor_bc_coeff)
        self.register_coeff_buffer("critic_bc_coeff", critic_bc_coeff)
        self.normalize_q = normalize_q

    def _also_read(self) -> list[NestedKey]:
        key = self.tensor_keys.action
        return [("next", *key) if isinstance(key, tuple) else ("next", key)]

    def _penalty(self, action: Tensor, tensordict: TensorDictBase) -> Tensor:
        """``|action - a|^2``, ``[*batch]``, with ``a`` the action that ``tensordict`` holds."""
        return (action - tensordict.get(self.tensor_keys.action)).pow(2).sum(-1)

    @part
    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``-lambda min_i Q_i(s, pi(s)) + beta_1 |pi(s) - a|^2`` per sample, with
        ``lambda = 1 / mean |min_i Q_i|``, or 1 without ``normalize_q``."""
        action = self._action(tensordict)
        q = self._q(tensordict, action, detach=True)
        least = q.min(0).values
        scale = self._mean(least.abs(), tensordict).detach()
        lmbd = 1 / scale if self.normalize_q else scale.new_ones(())
        penalty = self._penalty(action, tensordict)
        bc = self._mean(penalty, tensordict).detach()
        info = {"state_action_value_actor": q.detach(), "bc_loss": bc, "lmbd": lmbd}
        return self.actor_bc_coeff * penalty - lmbd * least, info

    def _next_value(self, after: TensorDictBase) -> Tensor:
        action = self._smoothed_action(after)
        q = self._q(after, action, target=True).min(0).values
        return q - self.critic_bc_coeff * self._penalty(action, after)

    @part
    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Bellman error against ``r + gamma (min_i Q'_i(s', a') - beta_2 |a' - b'|^2)``, summed
        over critics, per sample: ``a'`` the smoothed target action, ``b'`` the data's."""
        return self._critic_loss(tensordict)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self._both(tensordict, self.qvalue_loss)
