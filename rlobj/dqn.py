"""Deep Q-learning: DQN (Mnih et al. 2015), double DQN (van Hasselt et al. 2016, arXiv:1509.06461)
and C51 (Bellemare et al. 2017, arXiv:1707.06887)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor, nn

from rlobj._arguments import Options, takes
from rlobj._critics import ActionValueKeys
from rlobj._parts import once, part
from rlobj.common import LossModule
from rlobj.modules.qvalue import QValueActor, value_of
from rlobj.specs import TensorSpec, action_space_of, action_spec_of
from rlobj.utils import ValueEstimators, value_type_of, weight_like


def space_or_one_hot(space: object, loss: str) -> str:
    """The name of an action space; one-hot, with a warning, where nothing is known of it."""
    if action_spec_of(space) is not None:
        return action_space_of(space)
    warnings.warn(f"{loss}: action_space is unknown, one-hot is assumed", stacklevel=5)
    return "one_hot"


def settle_action_space(action_space: object, network: object, loss: str) -> str:
    """The action space given, or else the network's.

    Raises:
        ValueError: when neither knows.
    """
    if not hasattr(network, "action_space") and not hasattr(network, "spec"):
        if action_space is None:
            raise ValueError(f"{loss} cannot tell the action space: pass action_space")
        return action_space_of(action_space)
    own = getattr(network, "action_space", None) or getattr(network, "spec", None)
    return space_or_one_hot(own if action_space is None else action_space, loss)


class QValueLoss(LossModule):
    """What losses share that learn a Q-network over discrete actions from one-step targets: all
    but ``qvalue_loss``, which is their one term unless they have a ``forward`` of their own. Of the
    value estimators they can use TD0, TD1 and TDLambda."""

    default_value_estimator = ValueEstimators.TD0
    _usable_estimators = (ValueEstimators.TD0, ValueEstimators.TD1, ValueEstimators.TDLambda)
    out_keys = ["loss"]
    action_space: Any

    def _init_network(
        self,
        network: nn.Module,
        delay_value: bool,
        action_space: str | TensorSpec | None,
        name: str = "value_network",
    ) -> None:
        if not isinstance(network, TensorDictModuleBase):
            network = QValueActor(network, action_space=action_space)
        self.action_space = settle_action_space(action_space, network, str(type(self).__name__))
        self.delay_value = delay_value
        self.convert_to_functional(network, name, None, delay_value)

    @once
    def _scores(self, tensordict: TensorDictBase) -> Tensor:
        """Q(s, ·) of the online network, ``[*batch, n]``."""
        out = self.run_network("value_network", tensordict)
        return out[self.tensor_keys.action_value]

    def _of_data(self, values: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Q(s, a) of the batch's actions, ``[*batch]``."""
        return value_of(values, tensordict.get(self.tensor_keys.action), self.action_space)

    def _next_value(self, tensordict: TensorDictBase) -> Tensor:
        """``max_a Q'(s', a)`` of the target network, ``[*batch]``."""
        return self._v(tensordict.get("next"), target=True)

    def _errors(self, q: Tensor, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The distance of ``q`` ``[*batch]`` from its target, per sample."""
        with torch.no_grad():
            target = self.bootstrap(tensordict, self._next_value(tensordict))
        info = {"td_error": (q - target).detach().pow(2), "pred_value": q.detach()}
        return self._distance(q, target), {**info, "target_value": target}

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        loss, info = self.qvalue_loss(tensordict)
        tensordict.set(self.tensor_keys.priority, info["td_error"].unsqueeze(-1))
        return TensorDict({"loss": loss})


class DQNLoss(QValueLoss):
    """Deep Q-learning, with a delayed target network and, optionally, the double estimator.

    Args:
        value_network: :class:`~rlobj.modules.QValueActor`; a TensorDictModule that writes action
            values, greedy action and its value; or any module, which becomes a QValueActor.
        loss_function: "l1", "l2" or "smooth_l1".
        delay_value: keep delayed target parameters.
        double_dqn: the online network chooses the next action, the target network values it.
        action_space: "one_hot", "categorical", "mult_one_hot", "binary" or a spec, of the actions
            in the batch; by default the network's.
        use_prioritized_weights: weigh by ``priority_weight`` where the batch holds it.

    Raises:
        ValueError: when the action space is unknown; on ``double_dqn`` also when it is not the
            network's, or without ``delay_value``.
    """

    @dataclass
    class _AcceptedKeys(ActionValueKeys):
        advantage: NestedKey = "advantage"
        value_target: NestedKey = "value_target"
        value: NestedKey = "chosen_action_value"
        priority_weight: NestedKey = "priority_weight"

    @takes("gamma action_space priority_key reduction use_prioritized_weights")
    def __init__(
        self,
        value_network: nn.Module,
        *,
        loss_function: str = "l2",
        delay_value: bool = True,
        double_dqn: bool = False,
        action_space: str | TensorSpec | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        if double_dqn and not delay_value:
            raise ValueError("double_dqn=True requires delay_value=True.")
        self.double_dqn, self.loss_function = double_dqn, loss_function
        self._init_network(value_network, delay_value, action_space)
        own = getattr(self.value_network, "action_space", None)
        if double_dqn and own is not None and action_space_of(own) != self.action_space:
            raise ValueError(f"action_space {self.action_space!r} is not the network's, {own!r}")

    def _next_value(self, tensordict: TensorDictBase) -> Tensor:
        if not self.double_dqn:
            return super()._next_value(tensordict)
        after = tensordict.get("next")
        action = self.run_network("value_network", after, detach=True)[self.tensor_keys.action]
        target = self.run_network("value_network", after, target=True)
        return value_of(target[self.tensor_keys.action_value], action, self.action_space)

    @part
    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance between Q(s, a) and ``r + gamma max_a' Q'(s', a')`` per sample (Mnih et al.
        2015, eq. 2); double: ``r + gamma Q'(s', argmax_a' Q(s', a'))`` (van Hasselt, eq. 4).
        Q' is the target network. Of "l2" it is the square, not half of it."""
        return self._errors(self._of_data(self._scores(tensordict), tensordict), tensordict)


def project_distribution(probs: Tensor, returns: Tensor, support: Tensor) -> Tensor:
    """The projection of a distribution onto a support (Bellemare et al. 2017, eq. 7).

    ``m_i = sum_j p_j [1 - |clip(t_j, z_0, z_last) - z_i| / dz]`` cut to [0, 1]: the mass at each
    return goes to the two atoms around it, the nearer one getting more.

    Args:
        probs, returns: masses p_j and where they lie t_j, both ``[*batch, atoms]``.
        support: the evenly spaced atoms z_i, ascending, ``[n]``.

    Returns:
        ``[*batch, n]``, which sums to what ``probs`` sums to.
    """
    low, high, atoms = support[0], support[-1], support.shape[0]
    clipped = torch.minimum(torch.maximum(returns, low), high)
    position = (clipped - low) / (high - low) * (atoms - 1)  # counted in atoms
    below = position.nan_to_num().floor().clamp(max=atoms - 2)
    share, index = position - below, below.long()  # a nan is an atom, with a share of nan
    near, far = probs * (1 - share), probs * share  # rewards may be of another type
    mass = near.new_zeros(*near.shape[:-1], atoms).scatter_add(-1, index, near)
    return mass.scatter_add(-1, index + 1, far)


class DistributionalDQNLoss(QValueLoss):
    """C51: learns the distribution of returns over a fixed support (Bellemare et al. 2017).

    The next action is the online network's, its distribution the target network's, as upstream
    and in Rainbow (Hessel et al. 2018); without ``delay_value`` that is the paper's algorithm 1.

    Args:
        value_network: :class:`~rlobj.modules.DistributionalQValueActor` over "one_hot" or
            "categorical" actions.
        gamma: discount per step; a buffer, which may be assigned.
        delay_value: keep delayed target parameters.
        use_prioritized_weights: weigh by ``priority_weight`` where the batch holds it.

    Raises:
        TypeError: when the network has no support or no action space.
        ValueError: when the support is not ascending in even steps.
        NotImplementedError: on other action spaces.
    """

    @dataclass
    class _AcceptedKeys(ActionValueKeys):
        steps_to_next_obs: NestedKey = "steps_to_next_obs"
        priority_weight: NestedKey = "priority_weight"

    gamma: Tensor

    @takes("priority_key reduction use_prioritized_weights")
    def __init__(
        self,
        value_network: nn.Module,
        *,
        gamma: float,
        delay_value: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.delay_value = delay_value
        self.register_buffer("gamma", torch.tensor(float(gamma)))
        support = getattr(value_network, "support", None)
        self.action_space = getattr(value_network, "action_space", None)
        if not isinstance(support, Tensor) or self.action_space is None:
            raise TypeError("DistributionalDQNLoss needs a DistributionalQValueActor")
        _check_support(support)
        if self.action_space not in ("one_hot", "categorical"):
            raise NotImplementedError(f"no distributional loss for {self.action_space!r} actions")
        self.convert_to_functional(value_network, "value_network", None, delay_value)

    def make_value_estimator(
        self, value_type: ValueEstimators | str | None = None, *, gamma: float | None = None
    ) -> LossModule:
        """Only TD0, which the loss computes itself; ``gamma`` replaces the discount.

        Raises:
            NotImplementedError: on another estimator.
        """
        if value_type is not None and value_type_of(value_type) is not ValueEstimators.TD0:
            raise NotImplementedError(f"{type(self).__name__} cannot use {value_type}")
        if gamma is not None:
            self.gamma = gamma  # type: ignore[assignment]
        return self

    def _log_probs_of(self, log_probs: Tensor, action: Tensor) -> Tensor:
        """``log p(s, a)`` ``[*batch, atoms]`` out of ``[*batch, atoms, n]``."""
        if self.action_space == "one_hot":
            picked = action.to(torch.bool).unsqueeze(-2)
            return torch.where(picked, log_probs, 0).sum(-1)
        index = action.long().reshape(*log_probs.shape[:-2], 1, 1).expand(*log_probs.shape[:-1], 1)
        return log_probs.gather(-1, index).squeeze(-1)

    def _target(self, tensordict: TensorDictBase, support: Tensor) -> Tensor:
        """The projected distribution of ``r + gamma^k (1 - terminated) z``, ``[*batch, atoms]``."""
        keys, after = self.tensor_keys, tensordict.get("next")
        action = self.run_network("value_network", after, detach=True)[keys.action]
        log_probs = self.run_network("value_network", after, target=True)[keys.action_value]
        reward = after.get(keys.reward)
        alive = 1 - self._over(tensordict).to(reward.dtype)
        steps = tensordict.get(keys.steps_to_next_obs, None)
        discount = self.gamma if steps is None else self.gamma ** weight_like(steps, reward)
        returns = reward + discount * alive * support
        return project_distribution(self._log_probs_of(log_probs, action).exp(), returns, support)

    @part
    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy ``-sum_i m_i log p_i(s, a)`` per sample (algorithm 1), m being the
        projection of ``r + gamma Z'(s', argmax_a' E Z(s', a'))`` onto the support."""
        held = self._params_of("value_network", target=False, detach=True)
        support = held[self._networks["value_network"]["keys"].index("support")]
        with torch.no_grad():
            target = self._target(tensordict, support)
        out = self.run_network("value_network", tensordict)[self.tensor_keys.action_value]
        log_probs = self._log_probs_of(out, tensordict.get(self.tensor_keys.action))
        loss = -(target * log_probs).sum(-1)
        return loss, {"td_error": loss.detach(), "target": target}


def _check_support(support: Tensor) -> None:
    steps = support.diff()
    even = steps.numel() > 0 and bool((steps > 0).all())
    if support.ndim != 1 or not even or not torch.allclose(steps, steps.mean(), rtol=1e-3):
        raise ValueError("the support must hold two or more returns, ascending in even steps")
