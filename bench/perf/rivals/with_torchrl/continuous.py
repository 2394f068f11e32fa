"""Updates for continuous actions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bench.perf.rivals.with_torchrl.parts import (
    GAMMA,
    TAU,
    Learner,
    Nets,
    adam,
    all_at_once,
    descend,
    leaves,
)
from bench.perf.work import Work


def bc(work: Work) -> Learner:
    from torchrl.objectives import BCLoss

    loss = BCLoss(Nets(work).deterministic(), loss_function="l2")
    return all_at_once(loss, [adam(leaves(loss.actor_network_params))], "loss_bc", tau=0)


def td3(work: Work) -> Learner:
    from torchrl.objectives import TD3Loss

    return delayed(work, TD3Loss, "value_loss")


def td3_bc(work: Work) -> Learner:
    from torchrl.objectives import TD3BCLoss

    return delayed(work, TD3BCLoss, "qvalue_loss")


def delayed(work: Work, cls: Any, critic_loss: str) -> Learner:
    """Critics at every step, actor and targets at every second."""
    from torchrl.objectives import SoftUpdate

    nets = Nets(work)
    loss = cls(
        nets.deterministic(),
        nets.critic(),
        action_spec=nets.spec,
        num_qvalue_nets=2,
        loss_function="l2",
        delay_actor=True,
        delay_qvalue=True,
    ).to(work.device)
    loss.make_value_estimator(gamma=GAMMA)
    targets = SoftUpdate(loss, eps=1 - TAU)
    actor_adam, critic_adam = (
        adam(leaves(p)) for p in (loss.actor_network_params, loss.qvalue_network_params)
    )
    judged = getattr(loss, critic_loss)
    count = 0

    def update(batch: Any) -> None:
        nonlocal count
        count += 1
        descend(judged(batch)[0], critic_adam)
        if count % 2 == 0:
            descend(loss.actor_loss(batch)[0], actor_adam)
            targets.step()

    return update, [actor_adam, critic_adam]


def ddpg(work: Work) -> Learner:
    from torchrl.objectives import DDPGLoss

    nets = Nets(work, 400, 300)
    loss = DDPGLoss(nets.deterministic(), nets.critic(), loss_function="l2", delay_actor=True)
    loss.to(work.device).make_value_estimator(gamma=GAMMA)
    optimizers = [
        adam(leaves(loss.actor_network_params), 1e-4),
        adam(leaves(loss.value_network_params), 1e-3, decay=1e-2),
    ]
    return all_at_once(loss, optimizers, "loss_actor", "loss_value", tau=0.001)


def iql(work: Work) -> Learner:
    from torchrl.objectives import IQLLoss

    nets = Nets(work)
    loss = IQLLoss(
        nets.stochastic(),
        nets.critic(),
        nets.value(),
        loss_function="l2",
        temperature=3.0,
        expectile=0.7,
    ).to(work.device)
    loss.make_value_estimator(gamma=GAMMA)
    parts = (loss.actor_network_params, loss.qvalue_network_params, loss.value_network_params)
    optimizers = [adam(leaves(p)) for p in parts]
    return all_at_once(loss, optimizers, "loss_actor", "loss_value", "loss_qvalue")


def soft(work: Work, loss: Any, *more: str, lr: float = 3e-4) -> Learner:
    """Actor, critics and temperature."""
    loss.to(work.device)  # before the optimizers see its temperature
    loss.make_value_estimator(gamma=GAMMA)
    temperature: list[Tensor] = [loss.log_alpha]
    optimizers = [
        adam(leaves(loss.actor_network_params), lr),
        adam(leaves(loss.qvalue_network_params)),
        adam(temperature, lr),
    ]
    return all_at_once(loss, optimizers, "loss_actor", "loss_qvalue", "loss_alpha", *more)


def sac(work: Work, critics: int = 2, depth: int = 2) -> Learner:
    from torchrl.objectives import SACLoss

    nets = Nets(work, *(256,) * depth)
    loss = SACLoss(
        nets.stochastic(),
        nets.critic(),
        num_qvalue_nets=critics,
        loss_function="l2",
        action_spec=nets.spec,
    )
    return soft(work, loss)


def sac_n(work: Work) -> Learner:
    return sac(work, critics=10, depth=3)


def redq(work: Work) -> Learner:
    from torchrl.objectives import REDQLoss

    nets = Nets(work)
    loss = REDQLoss(
        nets.stochastic(),
        nets.critic(),
        num_qvalue_nets=10,
        sub_sample_len=2,
        loss_function="l2",
        action_spec=nets.spec,
    )
    return soft(work, loss)


def cql(work: Work) -> Learner:
    from torchrl.objectives import CQLLoss

    nets = Nets(work, 256, 256, 256)
    loss = CQLLoss(
        nets.stochastic(),
        nets.critic(),
        loss_function="l2",
        action_spec=nets.spec,
        min_q_weight=10.0,
        num_random=10,
        with_lagrange=False,
    )
    return soft(work, loss, "loss_cql", lr=3e-5)


LEARNERS = {
    "bc": bc,
    "bc10": bc,  # of other rows
    "td3": td3,
    "td3_bc": td3_bc,
    "ddpg": ddpg,
    "iql": iql,
    "sac": sac,
    "sac_n": sac_n,
    "redq": redq,
    "cql": cql,
}
