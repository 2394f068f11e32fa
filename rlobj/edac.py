"""SAC-N and EDAC (An et al. 2021, arXiv:2110.01548)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from rlobj._parts import part
from rlobj.sac import SACLoss

_EPS = 1e-10  # the authors' guard of the norm


class EDACLoss(SACLoss):
    """Soft actor-critic with a large ensemble of critics, kept diverse in their action gradients.

    Args:
        actor_network: stochastic actor.
        qvalue_network: Q(s, a), one module (copied ``num_qvalue_nets`` times) or a list.
        num_qvalue_nets: N of the paper.
        eta: weight of the diversity term; 0 is SAC-N.
        loss_function, alpha_init, fixed_alpha, target_entropy, action_spec: as in SACLoss.

    Raises:
        ValueError: when ``eta`` is not 0 and there is but one critic.
    """

    out_keys = ["loss_actor", "loss_qvalue", "loss_diversity", "loss_alpha", "alpha", "entropy"]

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: nn.Module | Sequence[nn.Module],
        *,
        num_qvalue_nets: int = 10,
        eta: float = 1.0,
        loss_function: str = "l2",
        alpha_init: float = 1.0,
        action_spec: Any = None,
        fixed_alpha: bool = False,
        target_entropy: str | float = "auto",
        separate_losses: bool = False,
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: bool | str = "auto",
    ) -> None:
        if eta and num_qvalue_nets < 2:
            raise ValueError("a diversity term (eta) needs at least two critics")
        super().__init__(
            actor_network,
            qvalue_network,
            num_qvalue_nets=num_qvalue_nets,
            loss_function=loss_function,
            alpha_init=alpha_init,
            action_spec=action_spec,
            fixed_alpha=fixed_alpha,
            target_entropy=target_entropy,
            separate_losses=separate_losses,
            reduction=reduction,
            deactivate_vmap=deactivate_vmap,
            use_prioritized_weights=use_prioritized_weights,
        )
        self.num_qvalue_nets, self.eta = num_qvalue_nets, eta

    def _action_gradients(self, tensordict: TensorDictBase) -> Tensor:
        """``dQ_i/da`` at the batch's actions, ``[n_critics, *batch, a]``."""
        key, n = self.tensor_keys.action, self.num_qvalue_nets
        net, out_key = self.__dict__["qvalue_network"], self.tensor_keys.state_action_value
        seen = {k: tensordict.get(k) for k in net.in_keys if k != key}
        repeated = {k: v.expand(n, *v.shape) for k, v in seen.items()}

        def q(action: Tensor) -> Tensor:
            inputs = TensorDict({**repeated, key: action}, torch.Size([n, *tensordict.batch_size]))
            return self.run_network("qvalue_network", inputs, own_inputs=True)[out_key]

        action = tensordict.get(key)
        found = torch.func.vjp(q, action.expand(n, *action.shape).clone())
        value, pull = found[0], found[1]
        return pull(torch.ones_like(value))[0]

    @part
    def diversity_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``eta / (N - 1) sum_{i != j} <g_i, g_j>`` with ``g_i`` the action gradient of critic i
        at unit length, per sample (J_ES): low where critics disagree about which way is up."""
        if self.eta == 0:
            action = tensordict.get(self.tensor_keys.action)
            return torch.zeros_like(action[..., 0]), {}
        gradient = self._action_gradients(tensordict)
        unit = gradient / (gradient.norm(dim=-1, keepdim=True) + _EPS)
        # the sum over pairs is |sum_i g_i|^2 less the diagonal
        pairs = unit.sum(0).pow(2).sum(-1) - unit.pow(2).sum(-1).sum(0)
        return self.eta / (self.num_qvalue_nets - 1) * pairs, {"cosines": pairs.detach()}

    def _terms(self, tensordict: TensorDictBase) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        losses, info = super()._terms(tensordict)
        losses["loss_diversity"], _ = self.diversity_loss(tensordict)
        return losses, info
