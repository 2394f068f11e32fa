"""QMIX (Rashid et al. 2018, arXiv:1803.11485) and VDN (Sunehag et al. 2018, arXiv:1706.05296)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from torch import Tensor, nn

from rlobj._arguments import refuse
from rlobj._parts import part
from rlobj.dqn import QValueLoss
from rlobj.specs import TensorSpec


class QMixerLoss(QValueLoss):
    """Q-learning of a team with one reward: a mixer makes Q_tot of the agents' own action values.

    Q_tot rises with each of them, so the agents' greedy actions are together the greedy action of
    the team, and each agent can act alone. :class:`~rlobj.modules.VDNMixer` adds them up,
    :class:`~rlobj.modules.QMixer` mixes them by the state.

    Args:
        local_value_network: as in :class:`~rlobj.DQNLoss`, with action values ``[*batch, agents,
            n]``.
        mixer_network: from the values of the agents' actions ``[*batch, agents, 1]``, and what
            else its ``in_keys`` name, to Q_tot ``[*batch, 1]``; any other module gets the values.
        loss_function: "l1", "l2" or "smooth_l1".
        delay_value: keep delayed target parameters of both networks.
        action_space: as in :class:`~rlobj.DQNLoss`, of each agent's action.

    Raises:
        ValueError: when the action space is unknown.
    """

    @dataclass
    class _AcceptedKeys:
        advantage: NestedKey = "advantage"
        value_target: NestedKey = "value_target"
        local_value: NestedKey = ("agents", "chosen_action_value")
        global_value: NestedKey = "chosen_action_value"
        action_value: NestedKey = ("agents", "action_value")
        action: NestedKey = ("agents", "action")
        priority: NestedKey = "td_error"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"

    def __init__(
        self,
        local_value_network: nn.Module,
        mixer_network: nn.Module,
        *,
        loss_function: str = "l2",
        delay_value: bool = True,
        gamma: float | None = None,
        action_space: str | TensorSpec | None = None,
        priority_key: str | None = None,
        reduction: str | None = None,
    ) -> None:
        refuse(gamma=gamma, priority_key=priority_key)
        super().__init__(reduction=reduction)
        self.loss_function, keys = loss_function, self.tensor_keys
        if not isinstance(mixer_network, TensorDictModuleBase):
            mixer_network = TensorDictModule(
                mixer_network, in_keys=[keys.local_value], out_keys=[keys.global_value]
            )
        self._init_network(local_value_network, delay_value, action_space, "local_value_network")
        self.convert_to_functional(mixer_network, "mixer_network", create_target_params=delay_value)

    def _derive_in_keys(self) -> list[NestedKey]:
        made = set(self.local_value_network.out_keys) & set(self.mixer_network.in_keys)
        made |= {unravel_key(("next", k)) for k in made}
        return [k for k in super()._derive_in_keys() if k not in made]

    def _estimator_keys(self) -> dict[str, NestedKey]:
        return {**super()._estimator_keys(), "value": self.tensor_keys.global_value}

    def _mixed(
        self,
        tensordict: TensorDictBase,
        local: Mapping[NestedKey, Tensor],
        target: bool = False,
    ) -> Tensor:
        """Q_tot ``[*batch]`` of what the local network wrote."""
        read = self.mixer_network.in_keys
        inputs = {k: local[k] if k in local else tensordict.get(k) for k in read}
        inputs = TensorDict(inputs, tensordict.batch_size)
        out = self.run_network("mixer_network", inputs, target=target)
        return out[self.tensor_keys.global_value].squeeze(-1)

    def _next_value(self, tensordict: TensorDictBase) -> Tensor:
        """``Q'_tot(s', u')`` of each agent's best action u', ``[*batch]``."""
        after = tensordict.get("next")
        local = self.run_network("local_value_network", after, target=True)
        return self._mixed(after, local, target=True)

    @part
    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance between Q_tot(s, u) and ``r + gamma max_u' Q'_tot(s', u')`` per sample (Rashid
        et al. 2018, eq. 6). Q'_tot are the target networks; of "l2" it is the square."""
        local = self.run_network("local_value_network", tensordict)
        chosen = self._of_data(local[self.tensor_keys.action_value], tensordict).unsqueeze(-1)
        local = {**local, self.tensor_keys.local_value: chosen}
        return self._errors(self._mixed(tensordict, local), tensordict)

    @dispatch(auto_batch_size=False)  # the entries of agents have an axis more
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        loss, info = self.qvalue_loss(tensordict)
        tensordict.set(self.tensor_keys.priority, info["td_error"].unsqueeze(-1))
        return TensorDict({"loss": loss})
