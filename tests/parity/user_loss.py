"""A loss as a user writes one, the same lines on torchrl's LossModule and on ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from torch import nn

from tests.parity.harness import Library

OBS, ACT = 4, 2


def actor(lib: Library, dropout: float = 0.0) -> Any:
    drop = nn.Dropout(dropout) if dropout else nn.Identity()
    layers = nn.Sequential(nn.Linear(OBS, 5), nn.Tanh(), drop, nn.Linear(5, 2 * ACT))
    net = nn.Sequential(layers, lib.modules.NormalParamExtractor())
    return lib.modules.ProbabilisticActor(
        TensorDictModule(net, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=lib.modules.TanhNormal,
        return_log_prob=True,
    )


def critic(lib: Library, norm: bool = False, trunk: nn.Module | None = None) -> Any:
    first = trunk or nn.Linear(OBS, 5)
    middle = [nn.BatchNorm1d(5)] if norm else []
    net = nn.Sequential(first, *middle, nn.Tanh(), nn.Linear(5, 1))
    return lib.modules.ValueOperator(net, in_keys=["observation"])


def user_class(lib: Library) -> type:
    """The class, on this library's base."""

    class UserLoss(lib.losses.LossModule):
        """A policy gradient weighted by TD errors, and a squared TD error."""

        @dataclass
        class _AcceptedKeys:
            advantage: Any = "advantage"
            value_target: Any = "value_target"
            value: Any = "state_value"
            action: Any = "action"
            reward: Any = "reward"
            done: Any = "done"
            terminated: Any = "terminated"

        default_keys = _AcceptedKeys
        tensor_keys: _AcceptedKeys
        _schedulable_buffers = frozenset({"coefficient"})  # what torchrl lets a number be set to
        default_value_estimator = lib.losses.ValueEstimators.TD0
        actor_network: TensorDictModule
        actor_network_params: TensorDictParams
        target_actor_network_params: TensorDictParams
        critic_network: TensorDictModule
        critic_network_params: TensorDictParams
        target_critic_network_params: TensorDictParams
        out_keys = ["loss_actor", "loss_critic", "sampled"]

        def __init__(
            self,
            policy: nn.Module,
            value: nn.Module | list[nn.Module],
            *,
            copies: int | None = None,
            delay_actor: bool = False,
            delay_critic: bool = True,
            separate: bool = False,
            coefficient: float | None = 0.5,
        ) -> None:
            super().__init__()
            self.reduction, self.copies = "mean", copies
            self.convert_to_functional(policy, "actor_network", create_target_params=delay_actor)
            self.convert_to_functional(
                value,
                "critic_network",
                expand_dim=copies,
                create_target_params=delay_critic,
                compare_against=list(policy.parameters()) if separate else None,
            )
            self.register_coeff_buffer("coefficient", coefficient)

        @property
        def in_keys(self) -> list:
            keys = self.tensor_keys
            after = ("observation", keys.reward, keys.done, keys.terminated)
            return ["observation", keys.action, *(("next", k) for k in after)]

        def values(self, tensordict: TensorDictBase, params: Any) -> torch.Tensor:
            def one(p: Any) -> torch.Tensor:
                with p.to_module(self.critic_network, preserve_module_state=False):
                    return self.critic_network(tensordict.select("observation"))["state_value"]

            if self.copies is None:
                return one(params)
            return torch.vmap(one)(params).amin(0)

        def error(self, tensordict: TensorDictBase) -> torch.Tensor:
            after = self.values(tensordict["next"], self.target_critic_network_params)
            target = self.value_estimator.value_estimate(tensordict, next_value=after.detach())
            return target.detach() - self.values(tensordict, self.critic_network_params)

        def actor_loss(self, tensordict: TensorDictBase) -> tuple[torch.Tensor, torch.Tensor]:
            held = self.actor_network_params.to_module(
                self.actor_network, preserve_module_state=False
            )
            with held:
                dist = self.actor_network.get_dist(tensordict.select("observation"))
                sampled = self.actor_network(tensordict.select("observation"))["action"]
            log_prob = dist.log_prob(tensordict[self.tensor_keys.action]).unsqueeze(-1)
            scale = 1.0 if self.coefficient is None else self.coefficient
            return -(scale * log_prob * self.error(tensordict).detach()).mean(), sampled.detach()

        @dispatch
        def forward(self, tensordict: TensorDictBase) -> TensorDict:
            loss, sampled = self.actor_loss(tensordict)
            terms = {"loss_actor": loss, "loss_critic": self.error(tensordict).square().mean()}
            return TensorDict({**terms, "sampled": sampled})

    return UserLoss


def user_loss(
    lib: Library,
    *,
    shared: bool = False,
    norm: bool = False,
    members: int = 0,
    dropout: float = 0.0,
    gamma: float = 0.9,
    **options: Any,
) -> Any:
    """One with its value estimator: an instance, as torchrl's base builds none by name."""
    policy = actor(lib, dropout)
    trunk = policy.module[0].module[0][0] if shared else None
    value = critic(lib, norm, trunk)
    several = [value, *(critic(lib, norm) for _ in range(members - 1))]
    count = {"copies": members} if members else {}
    loss = user_class(lib)(policy, several if members else value, **count, **options)
    loss.make_value_estimator(lib.value.TD0Estimator(gamma=gamma, value_network=None))
    return loss
