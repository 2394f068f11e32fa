"""Updates for numbered actions."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn

from bench.perf.rivals.with_torchrl.parts import GAMMA, Learner, Nets, adam, all_at_once, leaves
from bench.perf.work import Work

NUMBERED: dict[str, Any] = {"action_space": "categorical"}


def greedy(net: nn.Module) -> nn.Module:
    from torchrl.modules import QValueActor

    return QValueActor(net, in_keys=["observation"], **NUMBERED)


def dqn(work: Work) -> Learner:
    from torchrl.objectives import DQNLoss

    net = Nets(work, 120, 84).mlp(work.observation, work.action)
    loss = DQNLoss(greedy(net), loss_function="smooth_l1", delay_value=True, **NUMBERED)
    return one(work, loss, "loss", lr=2.5e-4)


def discrete_cql(work: Work) -> Learner:
    from torchrl.objectives import DiscreteCQLLoss

    net = Nets(work).mlp(work.observation, work.action)
    loss = DiscreteCQLLoss(greedy(net), loss_function="l2", **NUMBERED)
    return one(work, loss, "loss_qvalue", "loss_cql")


def c51(work: Work) -> Learner:
    from torchrl.modules import DistributionalQValueActor
    from torchrl.objectives import DistributionalDQNLoss

    net = Nets(work, 120, 84).mlp(work.observation, (101, work.action))
    support = torch.linspace(-100.0, 100.0, 101, device=work.device)
    actor = DistributionalQValueActor(net, support=support, **NUMBERED)
    loss = DistributionalDQNLoss(actor, gamma=GAMMA, delay_value=True)
    return one(work, loss, "loss", lr=2.5e-4)


def one(work: Work, loss: Any, *terms: str, lr: float = 3e-4) -> Learner:
    """Of a loss with a single network."""
    loss.to(work.device).make_value_estimator(gamma=GAMMA)
    return all_at_once(loss, [adam(leaves(loss.value_network_params), lr)], *terms)


def discrete_iql(work: Work) -> Learner:
    from torchrl.objectives import DiscreteIQLLoss

    nets = Nets(work)
    loss = DiscreteIQLLoss(
        nets.categorical(),
        nets.all_critic("state_action_value"),
        nets.value(),
        **NUMBERED,
        loss_function="l2",
        temperature=3.0,
        expectile=0.8,
    ).to(work.device)
    loss.make_value_estimator(gamma=GAMMA)
    parts = (loss.actor_network_params, loss.qvalue_network_params, loss.value_network_params)
    optimizers = [adam(leaves(p)) for p in parts]
    return all_at_once(loss, optimizers, "loss_actor", "loss_value", "loss_qvalue")


def discrete_sac(work: Work) -> Learner:
    from torchrl.objectives import DiscreteSACLoss

    nets = Nets(work)
    loss = DiscreteSACLoss(
        nets.categorical(),
        nets.all_critic(),
        **NUMBERED,
        num_actions=work.action,
        loss_function="l2",
    ).to(work.device)
    loss.make_value_estimator(gamma=GAMMA)
    optimizers = [
        adam(leaves(loss.actor_network_params)),
        adam(leaves(loss.qvalue_network_params)),
        adam([loss.log_alpha]),
    ]
    return all_at_once(loss, optimizers, "loss_actor", "loss_qvalue", "loss_alpha")


AGENTS, OWN, STATE, CHOICES = 2, 5, 3, 2  # numbers that an agent sees, and of the state


def team_nets(device: str) -> tuple[nn.Module, nn.Module]:
    """The agents' common network with its greedy choice, and the mixer."""
    from torchrl.modules import MultiAgentMLP, QMixer, QValueModule

    net = MultiAgentMLP(
        OWN,
        CHOICES,
        AGENTS,
        centralized=False,
        share_params=True,
        depth=1,
        num_cells=64,
        activation_class=nn.ReLU,
        device=device,
    )
    values, chosen = ("agents", "action_value"), ("agents", "chosen_action_value")
    made = [("agents", "action"), values, chosen]
    local = TensorDictSequential(
        TensorDictModule(net, in_keys=[("agents", "observation")], out_keys=[values]),
        QValueModule(action_value_key=values, out_keys=made, **NUMBERED),
    )
    mixer = QMixer((STATE,), 32, AGENTS, device=device)
    return local, TensorDictModule(mixer, [chosen, "state"], ["chosen_action_value"])


def team(rows: Any) -> TensorDict:
    """Rows with the agents' observations and the state apart."""
    seen = rows["observation"]
    own = seen[..., : AGENTS * OWN].unflatten(-1, (AGENTS, OWN))
    parts = {"agents": {"observation": own}, "state": seen[..., AGENTS * OWN :]}
    return TensorDict(parts, rows.batch_size)


def taken_apart(batch: Any) -> TensorDict:
    joint, data, after = batch["action"], team(batch), batch["next"]
    data["agents", "action"] = torch.stack([joint // CHOICES, joint % CHOICES], -1)
    data["next"] = team(after).update(after.select("reward", "done", "terminated"))
    return data


def qmix(work: Work) -> Learner:
    from torchrl.objectives import QMixerLoss

    loss = QMixerLoss(*team_nets(work.device), delay_value=True, **NUMBERED)
    loss.to(work.device).make_value_estimator(gamma=GAMMA)
    weights = [*leaves(loss.local_value_network_params), *leaves(loss.mixer_network_params)]
    return all_at_once(loss, [adam(weights, 5e-4)], "loss", prepare=taken_apart)


LEARNERS = {
    "dqn": dqn,
    "c51": c51,
    "discrete_cql": discrete_cql,
    "discrete_iql": discrete_iql,
    "discrete_sac": discrete_sac,
    "qmix": qmix,
}
