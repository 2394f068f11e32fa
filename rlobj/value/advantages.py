"""Value estimators: modules that turn rewards and bootstrapped values into targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from rlobj.value.functional import td0_return_estimate


class ValueEstimatorBase(TensorDictModuleBase):
    """Base of all estimators: keys and the value network; subclasses define ``value_estimate``."""

    @dataclass
    class _AcceptedKeys:
        advantage: NestedKey = "advantage"
        value_target: NestedKey = "value_target"
        value: NestedKey = "state_value"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        steps_to_next_obs: NestedKey = "steps_to_next_obs"

    def __init__(self, *, value_network: nn.Module | None, differentiable: bool = False) -> None:
        super().__init__()
        self.value_network = value_network
        self.differentiable = differentiable
        self.tensor_keys = self._AcceptedKeys()

    def set_keys(self, **kwargs: NestedKey) -> None:
        """Rename entries. Raises KeyError on an unknown name."""
        for name, key in kwargs.items():
            if not hasattr(self.tensor_keys, name):
                raise KeyError(f"{name!r} is not a key of {type(self).__name__}")
            setattr(self.tensor_keys, name, key)

    @property  # type: ignore[misc]
    def in_keys(self) -> list[NestedKey]:
        """Entries a target is made of: those of the value network, now and next, and the flags."""
        keys, net = self.tensor_keys, self.value_network
        observed: Sequence[NestedKey] = getattr(net, "in_keys", ())
        after = (*observed, keys.reward, keys.done, keys.terminated)
        return [*observed, *(unravel_key(("next", k)) for k in after)]

    @property  # type: ignore[misc]
    def out_keys(self) -> list[NestedKey]:
        return [self.tensor_keys.advantage, self.tensor_keys.value_target]

    def _next(self, tensordict: TensorDictBase, name: str) -> Tensor:
        return tensordict.get(("next", getattr(self.tensor_keys, name)))


class TD0Estimator(ValueEstimatorBase):
    """One-step bootstrapped returns, see :func:`rlobj.value.functional.td0_return_estimate`."""

    gamma: Tensor

    def __init__(
        self,
        *,
        gamma: float | Tensor,
        value_network: nn.Module | None = None,
        differentiable: bool = False,
    ) -> None:
        super().__init__(value_network=value_network, differentiable=differentiable)
        self.register_buffer("gamma", torch.as_tensor(gamma, dtype=torch.get_default_dtype()))

    def value_estimate(
        self, tensordict: TensorDictBase, next_value: Tensor | None = None
    ) -> Tensor:
        """``r + gamma^k (1 - terminated) V(s')``, shape ``[*batch, 1]``; k from
        ``steps_to_next_obs`` where the batch holds n-step transitions."""
        if next_value is None:
            if self.value_network is None:
                raise ValueError("give next_value, or build the estimator with a value_network")
            next_td = self.value_network(tensordict.get("next").copy())
            next_value = next_td.get(self.tensor_keys.value)
        gamma = self.gamma
        steps = tensordict.get(self.tensor_keys.steps_to_next_obs, None)
        if steps is not None:
            gamma = gamma**steps
        reward = self._next(tensordict, "reward")
        return td0_return_estimate(gamma, next_value, reward, self._next(tensordict, "terminated"))
