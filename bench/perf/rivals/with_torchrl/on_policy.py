"""Policy gradients on the data of a clone that stands still: what follows the cloning."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch

from bench.perf.rivals.with_torchrl.parts import GAMMA, Learner, Nets, adam, all_at_once, leaves
from bench.perf.work import Work

LOG_PROB = "action_log_prob"


def improve(
    work: Work, name: str, term: str, options: dict[str, Any], *, weighted: bool = False
) -> Learner:
    """One gradient step on a loss of torchrl.objectives; ``weighted`` gives it advantages times
    pi / pi_b."""
    import torchrl.objectives

    nets = Nets(work, 1024, 1024)
    actor, value = nets.gaussian(), nets.value()
    clone: Any = deepcopy(actor)
    loss = getattr(torchrl.objectives, name)(actor, value, **options).to(work.device)
    loss.set_keys(sample_log_prob=LOG_PROB)

    def ratio(batch: Any, log_prob: Any) -> Any:
        with loss.actor_network_params.to_module(loss.actor_network):
            mine = loss.actor_network.get_dist(batch.copy()).log_prob(batch["action"])
        return (mine - log_prob).exp().clamp(max=2.0).unsqueeze(-1)

    @torch.no_grad()
    def prepare(batch: Any) -> Any:
        """Rewards stand in for returns."""
        behavior = clone.get_dist(batch)  # writes its parameters into the batch
        log_prob = behavior.log_prob(batch["action"])
        target = batch["next", "reward"]
        if name != "ReinforceLoss":
            after = value(batch["next"].select("observation"))["state_value"]
            target = target + GAMMA * ~batch["next", "terminated"] * after
        advantage = target - value(batch.select("observation"))["state_value"]
        advantage = (advantage - advantage.mean()) / advantage.std().clamp(min=1e-6)
        advantage = advantage * ratio(batch, log_prob) if weighted else advantage
        known = {LOG_PROB: log_prob, "advantage": advantage, "value_target": target}
        return batch.update(known)

    optimizer = adam(leaves(loss.actor_network_params), 1e-4)
    return all_at_once(loss, [optimizer], term, tau=0, prepare=prepare)


def on(name: str, term: str, weighted: bool = False, **options: Any) -> Callable[[Work], Learner]:
    return partial(improve, name=name, term=term, options=options, weighted=weighted)


ALONE: dict[str, Any] = {"entropy_bonus": False, "critic_coeff": None}  # no other term is computed
LEARNERS: dict[str, Callable[[Work], Learner]] = {
    "ppo": on("PPOLoss", "loss_objective", **ALONE, max_importance_ratio=2.0),
    "clip_ppo": on("ClipPPOLoss", "loss_objective", **ALONE, clip_epsilon=0.25),
    "kl_ppo": on("KLPENPPOLoss", "loss_objective", **ALONE, dtarg=0.05),
    "a2c": on("A2CLoss", "loss_objective", weighted=True, **ALONE),
    "reinforce": on("ReinforceLoss", "loss_actor", weighted=True),
}
