"""Randomized ensembled double Q-learning (Chen et al. 2021, arXiv:2101.05982)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn

from rlobj import noise
from rlobj._arguments import refuse
from rlobj.entropy import EntropyLoss
from rlobj.modules.distributions import rsample_and_log_prob
from rlobj.utils import ValueEstimators, distance_loss


class REDQLoss(EntropyLoss):
    """Soft actor-critic with many critics, of which a random few make each target.

    Args:
        actor_network: stochastic actor.
        qvalue_network: Q(s, a), one module (copied ``num_qvalue_nets`` times) or a list.
        num_qvalue_nets: N of the paper.
        sub_sample_len: M of the paper, the critics whose minimum is the target.
        loss_function: "l1", "l2" or "smooth_l1".
        alpha_init, min_alpha, max_alpha, fixed_alpha: the temperature and its range.
        target_entropy: number or "auto" (minus the number of action dimensions).

    Raises:
        NotImplementedError: with ``gSDE=True``.
        RuntimeError: when ``target_entropy="auto"`` and no action spec is known.
        ValueError: when ``sub_sample_len`` is not between 1 and ``num_qvalue_nets``.
    """

    @dataclass
    class _AcceptedKeys:
        action: NestedKey = "action"
        value: NestedKey = "state_value"
        sample_log_prob: NestedKey = "action_log_prob"
        priority: NestedKey = "td_error"
        state_action_value: NestedKey = "state_action_value"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"

    default_value_estimator = ValueEstimators.TD0
    scalar_keys = (
        "alpha",
        "entropy",
        "state_action_value_actor",
        "action_log_prob_actor",
        "next.state_value",
        "target_value",
    )
    out_keys = ["loss_actor", "loss_qvalue", "loss_alpha", *scalar_keys]

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: nn.Module | Sequence[nn.Module],
        *,
        num_qvalue_nets: int = 10,
        sub_sample_len: int = 2,
        loss_function: str = "smooth_l1",
        alpha_init: float = 1.0,
        min_alpha: float | None = 0.1,
        max_alpha: float | None = 10.0,
        action_spec: Any = None,
        fixed_alpha: bool = False,
        target_entropy: str | float = "auto",
        delay_qvalue: bool = True,
        gSDE: bool = False,
        gamma: float | None = None,
        priority_key: str | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: str | None = None,
    ) -> None:
        refuse(gamma=gamma, priority_key=priority_key)
        if gSDE:
            raise NotImplementedError("gSDE: there are no state-dependent exploration modules here")
        if not 1 <= sub_sample_len <= num_qvalue_nets:
            raise ValueError(f"sub_sample_len {sub_sample_len}: of {num_qvalue_nets} critics")
        super().__init__(
            reduction=reduction,
            deactivate_vmap=deactivate_vmap,
            scalar_output_mode=scalar_output_mode,
        )
        self.num_qvalue_nets, self.sub_sample_len = num_qvalue_nets, sub_sample_len
        self.loss_function = loss_function
        self._init_temperature(alpha_init, min_alpha, max_alpha, fixed_alpha)
        self.convert_to_functional(actor_network, "actor_network")
        self.convert_to_functional(
            qvalue_network,
            "qvalue_network",
            expand_dim=num_qvalue_nets,
            create_target_params=delay_qvalue,
            compare_against=list(actor_network.parameters()) if separate_losses else None,
        )
        entropy = self._resolve_target_entropy(target_entropy, action_spec)
        self.register_buffer("target_entropy", torch.tensor(entropy), persistent=False)

    def _also_read(self) -> list[NestedKey]:
        return [self.tensor_keys.sample_log_prob]  # as upstream declares it; not used

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``alpha * log pi(a|s) - mean_i Q_i(s, a)`` with ``a ~ pi``, over all N critics, per
        sample (algorithm 1)."""
        action, log_prob = rsample_and_log_prob(self.distribution(tensordict))
        q = self._q(tensordict, action, detach=True)
        info = {"log_prob": log_prob.detach(), "state_action_value_actor": q.detach()}
        return self.alpha * log_prob - q.mean(0), info

    def _subset(self, like: Tensor) -> Tensor:
        """Indices of M of the N critics, each subset as likely as any other."""
        keys = noise.uniform((self.num_qvalue_nets,), like)
        return keys.argsort()[: self.sub_sample_len]

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Soft Bellman error against
        ``r + gamma (min_{i in M} Q'_i(s', a') - alpha log pi(a'|s'))`` with one random subset M
        for the batch, summed over all N critics, per sample (algorithm 1)."""
        with torch.no_grad():
            after = tensordict.get("next")
            action, log_prob = rsample_and_log_prob(self.distribution(after))
            members = self._subset(action)
            q_next = self._q(after, action, target=True, members=members).min(0).values
            next_value = q_next - self.alpha * log_prob
            target = self.bootstrap(tensordict, next_value)
        q = self._q(tensordict, tensordict.get(self.tensor_keys.action))
        loss = distance_loss(q, target.expand_as(q), self.loss_function).sum(0)
        td_error = (q - target).detach().pow(2).max(0).values
        return loss, {"td_error": td_error, "next_value": next_value, "target_value": target}

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._warn_if_targets_stand_still()
        qvalue, q_info = self.qvalue_loss(tensordict)
        actor, info = self.actor_loss(tensordict)
        log_prob = info["log_prob"]
        tensordict.set(self.tensor_keys.priority, q_info["td_error"].unsqueeze(-1))
        alpha = self.alpha_loss(log_prob)
        losses = {"loss_actor": actor, "loss_qvalue": qvalue, "loss_alpha": alpha}
        report = {
            "alpha": self.alpha,
            "entropy": -log_prob.mean(),
            "state_action_value_actor": info["state_action_value_actor"].mean(),
            "action_log_prob_actor": log_prob.mean(),
            "next.state_value": q_info["next_value"].mean(),
            "target_value": q_info["target_value"].mean(),
        }
        return self.output(losses, report, tensordict)
